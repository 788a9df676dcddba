//! What the program does with its files while a checkpoint writes them out.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::{Cmd, Job, Mode, Sandbox};

const SOON: Duration = Duration::from_secs(30);

/// Locks a file through a descriptor that it then closes, and runs a file that it has just written; through others it always
/// leaves enough to be written out for that to take a while. None of that can fail.
const PROGRAM: &str = "
import fcntl, os
true = open('/bin/true', 'rb').read()
much, some = os.urandom(4 << 20), os.urandom(1 << 20)
files = [os.open(name, os.O_WRONLY | os.O_CREAT) for name in ('locked', 'run')]
for i in range(10 ** 8):
    os.pwrite(files[0], much, (i % 16) << 22)
    locked = os.open('locked', os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.pwrite(locked, some, (i % 16) << 20)
    os.close(locked)
    run = os.open('run', os.O_WRONLY | os.O_CREAT, 0o755) if i % 8 == 0 else -1
    if run >= 0:
        os.close(files[1])
        os.write(run, true)
        os.pwrite(run, some * 8, len(true))
        files[1] = -1
        os.close(run)
        child = os.posix_spawn('run', ['run'], {})
        assert os.waitpid(child, 0)[1] == 0
        files[1] = os.open('run', os.O_RDONLY)
    print(i, flush=True)
";

#[test]
fn a_checkpoint_holds_no_file_that_the_program_has_closed() {
    let sandbox = Sandbox::new("synced");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]));
    let (mut made, mut tries) = (0, 0);
    // While a child begins, one is refused.
    while made < 11 {
        tries += 1;
        assert!(tries < 500, "{made} checkpoints of {tries}");
        let then = job.running().stdout().len();
        sandbox.wait_for("the program to go on", SOON, || {
            assert!(!job.running().has_ended(), "{}", job.running().stderr());
            job.running().stdout().len() > then
        });
        made += u32::from(job.try_checkpoint().code() == 0);
    }
    let then = job.running().stdout().len();
    sandbox.wait_for("the program to go on", SOON, || job.running().stdout().len() > then);
    job.kill_all();
}

/// Adds to a file, and watches who opens it.
const WATCHER: &str = "
import ctypes, os, select
IN_NONBLOCK, IN_CLOSE, IN_OPEN = 0o4000, 0x18, 0x20
libc = ctypes.CDLL(None)
log = open('log', 'ab', 0)
watcher = libc.inotify_init1(IN_NONBLOCK)
assert libc.inotify_add_watch(watcher, b'log', IN_OPEN | IN_CLOSE) > 0
for i in range(10 ** 8):
    log.write(b'%9d' % i)
    assert not select.select([watcher], [], [], 0.005)[0], 'somebody has opened or closed it'
    print(i, flush=True)
";

#[test]
fn a_checkpoint_is_no_event_to_a_program_that_watches_its_file() {
    let sandbox = Sandbox::new("watched");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", WATCHER]));
    for mode in [Mode::Eager, Mode::Lazy] {
        for _ in 0..3 {
            job.checkpoint();
            let then = job.running().stdout().len();
            sandbox.wait_for("the program to go on", SOON, || {
                assert!(!job.running().has_ended(), "{}", job.running().stderr());
                job.running().stdout().len() > then + 10
            });
        }
        job.kill_all();
        job.restart(mode, &[]);
    }
    job.checkpoint();
    job.kill_all();
}

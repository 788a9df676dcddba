//! What a daemon's eBPF programs tell workers, whose users have none: nothing is injected, waits that the kernel forgets go on, and
//! what no system call tells is refused by name.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Survival, Tool, python_loop, survive};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

/// A job of a user whom the daemon serves.
fn launched<'b>(sandbox: &'b Sandbox, daemon: &Daemon<'b>, options: &[&str], program: &Cmd) -> Job<'b> {
    let tool = daemon.serves(Tool::of_user(sandbox));
    let user = tool.user.clone().unwrap();
    Job::launch_by(sandbox, tool, user.home().join("images"), options, &user.reaches(program))
}

/// System calls injected into the program, and processes whose smaps was read, in its freezes.
fn asked_of_it(sandbox: &Sandbox, job: &Job) -> Vec<[u64; 2]> {
    let text = std::fs::read_to_string(sandbox.see(job.dir()).join("events.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let freezes = events.filter(|event| event["phase"] == "freeze");
    freezes.map(|event| ["injected", "smaps"].map(|name| event[name].as_u64().unwrap())).collect()
}

#[test]
fn nothing_is_injected_by_daemon_as_long_as_there_is_one() {
    let sandbox = Sandbox::new("rows_injected");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut job = launched(&sandbox, &daemon, &[], &victim_cmd("threads16").args(["100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    job.checkpoint();
    job.checkpoint();
    for mode in [Mode::Eager, Mode::Lazy] {
        job.kill_all();
        job.restart(mode, &[]);
        job.program();
        job.checkpoint();
    }
    assert_eq!(asked_of_it(&sandbox, &job), [[0, 0]; 4], "{}", daemon.log());
    daemon.kill();
    job.checkpoint();
    job.checkpoint();
    let asked = asked_of_it(&sandbox, &job);
    assert!(asked[4..].iter().all(|[injected, smaps]| *injected > 17 && *smaps == 1), "{asked:?}");
    let said = job.running().stderr();
    let line = "system calls are injected for what eBPF would read from here on";
    assert_eq!(said.matches(line).count(), 1, "{said}");
    job.kill_all();
}

/// Three times it costs a checkpoint the rows; then nobody waits for it again.
#[test]
fn a_daemon_that_is_late_is_asked_again() {
    let sandbox = Sandbox::new("rows_late");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut job = launched(&sandbox, &daemon, &[], &victim_cmd("threads16").args(["100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    job.program();
    let is_told = |job: &Job| asked_of_it(&sandbox, job).last().unwrap()[0] == 0;
    let mut told = Vec::new();
    for _ in 0..3 {
        job.checkpoint();
        told.push(is_told(&job));
        sandbox.kill(daemon.pid(), libc::SIGSTOP).unwrap();
        job.checkpoint();
        told.push(is_told(&job));
        sandbox.kill(daemon.pid(), libc::SIGCONT).unwrap();
    }
    job.checkpoint();
    told.push(is_told(&job));
    assert_eq!(told, [true, false, true, false, true, false, false], "{}", job.running().stderr());
    job.kill_all();
    daemon.end();
}

/// Each of many checkpoints would have it begin anew.
#[test]
fn epoll_wait_ends_neither_early_nor_late_by_daemon() {
    let sandbox = Sandbox::new("rows_waits");
    let daemon = Daemon::begin(&sandbox, &[]);
    let program = victim_cmd("sleeps").args(["3000", "1", "epoll_wait,semtimedop,sigtimedwait"]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = launched(&sandbox, &daemon, &["-i", "0.1"], &program);
    job.wait(SOON).success();
    assert!(asked_of_it(&sandbox, &job).len() > 5);
    assert_same("standard output", &expected.stdout, &job.stdout());
    daemon.end();
}

/// Anonymous memory that fifteen processes share.
#[test]
fn a_tree_with_shared_memory_by_daemon() {
    let program = victim_cmd("forktree").args(["80", "50000"]);
    survive(&Survival { by_user: true, by_daemon: true, ..Survival::of("daemon_forktree", program) });
}

/// Nothing leads to it but its mappings, one of which is of its second half.
#[test]
fn memory_of_memfd_without_a_descriptor_by_daemon() {
    let begin = "
import mmap, os, zlib
fd = os.memfd_create('memory')
os.truncate(fd, 16 * 4096)
memory = mmap.mmap(fd, 16 * 4096)
half = mmap.mmap(fd, 8 * 4096, offset=8 * 4096)
# Those that Python keeps, too.
for name in os.listdir('/proc/self/fd'):
    link = f'/proc/self/fd/{name}'
    if os.path.islink(link) and os.readlink(link).startswith('/memfd:'):
        os.close(int(name))
";
    let step = "
memory[i * 4099 % len(memory)] = i % 256
half[i % len(half)] = i % 251
print(i, zlib.crc32(memory[:]), zlib.crc32(half[:]), flush=True)";
    let script = format!("{begin}{}", python_loop(800, 0.004, step));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { by_user: true, by_daemon: true, ..Survival::of("daemon_memfd", program) });
}

#[test]
fn what_no_system_call_tells_is_refused_by_daemon() {
    let sandbox = Sandbox::new("rows_refused");
    let daemon = Daemon::begin(&sandbox, &[]);
    let line = "import ctypes, signal\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        id = libc.semget(0, 1, 0o1600)\n\
        undone = (ctypes.c_int16 * 3)(0, 1, 0x1000)\n\
        print('done' if libc.semop(id, undone, 1) == 0 else 'failed', flush=True)\n\
        signal.pause()\n";
    let mut job = launched(&sandbox, &daemon, &[], &Cmd::new("/usr/bin/python3").args(["-c", line]));
    job.running().wait_for_output("done", SOON);
    job.program();
    let said = job.try_checkpoint().expect_code(125).stderr_text();
    assert!(said.contains("SEM_UNDO"), "{said}");
    job.kill_all();
    daemon.end();
}

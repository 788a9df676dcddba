//! What random operations once found, each by itself.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use ckpt_tests::calls::{Calls, From, interrupts};
use ckpt_tests::scenario::MODES;
use ckpt_tests::sys::share_descriptor;
use ckpt_tests::{Cmd, Job, Mode, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);

/// A program of Debian's Python that has blocked SIGUSR1 and says "ready" when it is set up.
fn python(body: &str) -> Cmd {
    const BEGIN: &str = "import os, signal, sys, threading, zlib
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def say(what): print(what, flush=True)
def told(): signal.sigwait([signal.SIGUSR1])
";
    Cmd::new("/usr/bin/python3").arg("-c").arg(format!("{BEGIN}{body}"))
}

fn launch<'b>(sandbox: &'b Sandbox, program: &Cmd) -> Job<'b> {
    let job = Job::launch(sandbox, &["--keep", "100"], program);
    job.running().wait_for_output("ready\n", SOON);
    job.program();
    job
}

fn tell(job: &Job, answer: &str) {
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output(answer, SOON);
}

/// While a checkpoint is taken ckptbpf has copies of descriptors. One with the number that the program has for the same
/// memory does not mean that ckptbpf was started with it. So the program has it under each number in turn.
#[test]
fn memory_under_every_number_that_a_copy_of_ckptbpf_s_may_have() {
    let program = python(
        "first = os.memfd_create('m')
os.write(first, b'content')
number = os.dup2(first, 6)
os.close(first)
say('ready')
while True:
    told()
    moved = os.dup2(number, number + 1)
    os.close(number)
    number = moved
    say(f'at {number}' if os.pread(number, 9, 0) == b'content' else 'WRONG')
",
    );
    let sandbox = Sandbox::new("found_numbers");
    let mut job = launch(&sandbox, &program);
    for number in 7..70 {
        tell(&job, &format!("at {number}\n"));
        job.checkpoint();
    }
    for (number, mode) in (70..).zip(MODES) {
        job.kill_all();
        job.restart(*mode, &[]);
        tell(&job, &format!("at {number}\n"));
        job.checkpoint();
    }
    job.kill_all();
}

/// Forks a child each time it is told, and has all of them look at their memory the next time.
fn forks() -> Cmd {
    python(
        "memory = bytearray(os.urandom(1 << 20) * 16)
before = zlib.crc32(memory)
children = []
say('ready')
while True:
    told()
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        while os.read(ours[0], 1):
            os.write(theirs[1], b'r' if zlib.crc32(memory) == before else b'w')
        os._exit(0)
    children.append((child, ours[1], theirs[0]))
    say('forked')
    told()
    answers = {(os.write(to, b'?'), os.read(by, 1))[1] for _, to, by in children}
    say('right' if answers == {b'r'} and zlib.crc32(memory) == before else 'WRONG')
",
    )
}

/// A child that was forked while pages were missing: the pager watches it too, and stops doing so when the last page is
/// there, which may be in the middle of a freeze. That is no userfaultfd of the program's own.
#[test]
fn a_child_forked_while_pages_are_missing_and_full_in_a_freeze() {
    let sandbox = Sandbox::new("found_forked");
    let mut job = launch(&sandbox, &forks());
    job.checkpoint();
    let hold = sandbox.dir().join("hold");
    for _ in 0..4 {
        std::fs::write(&hold, "").unwrap();
        job.kill_all();
        job.restart(Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
        job.program();
        tell(&job, "forked\n");
        let file = hold.clone();
        let arrive = Box::new(move || std::fs::remove_file(file).unwrap());
        let calls = Calls::before(job.running().outside_pid().unwrap(), From::Now, interrupts, arrive);
        job.checkpoint();
        assert!(calls.is_done());
        tell(&job, "right\n");
        job.checkpoint();
    }
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    tell(&job, "forked\n");
    tell(&job, "right\n");
    job.kill_all();
}

/// The same, and somebody looks at what ckptbpf has open: then closing a userfaultfd ends no watch yet. Who lists /proc/PID/fd
/// holds one for a microsecond, or for as long as it is kept from running then.
#[test]
fn a_child_forked_while_pages_are_missing_and_somebody_looks_on() {
    let sandbox = Sandbox::new("found_looked_at");
    let mut job = launch(&sandbox, &forks());
    job.checkpoint();
    let hold = sandbox.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    for round in 0..3 {
        job.kill_all();
        job.restart(Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
        job.program();
        tell(&job, "forked\n");
        let held = userfaultfds(job.running().outside_pid().unwrap());
        assert!(held.len() > 1, "its own, and one of the child");
        // New, and then one that has outlived a checkpoint.
        for _ in 0..=round {
            assert!(job.checkpoint().kind == "delta");
        }
        tell(&job, "right\n");
        job.checkpoint();
        drop(held);
    }
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    tell(&job, "forked\n");
    tell(&job, "right\n");
    job.kill_all();
}

/// The same at the end of a lazy restart: the child has memory that nobody else has any more, and that it touches first
/// when nobody serves pages any more.
#[test]
fn a_child_forked_while_pages_are_missing_has_all_of_them_and_somebody_looks_on() {
    let program = python(
        "import mmap
memory = bytearray(os.urandom(1 << 20) * 16)
area = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
say('ready')
told()
ours, theirs = os.pipe(), os.pipe()
if os.fork() == 0:
    while os.read(ours[0], 1):
        was, area[4096:8192] = area[4096:8192], b'x' * 4096
        os.write(theirs[1], b'r' if was == bytes(4096) and area[4096:8192] == b'x' * 4096 else b'w')
    os._exit(0)
area.close()
say('forked')
told()
os.write(ours[1], b'?')
say('right' if os.read(theirs[0], 1) == b'r' else 'WRONG')
told()
",
    );
    let sandbox = Sandbox::new("found_handed_over");
    let mut job = launch(&sandbox, &program);
    job.checkpoint();
    job.kill_all();
    let hold = sandbox.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    job.restart(Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
    let pid = job.program();
    tell(&job, "forked\n");
    let held = userfaultfds(job.running().outside_pid().unwrap());
    std::fs::remove_file(&hold).unwrap();
    let smaps = sandbox.root().join(format!("proc/{pid}/smaps"));
    let is_served = || std::fs::read_to_string(&smaps).unwrap().contains(" um ");
    sandbox.wait_for("the end of the pager", SOON, || !is_served());
    tell(&job, "right\n");
    assert!(job.checkpoint().kind == "delta");
    drop(held);
    job.kill_all();
}

/// All that a process has open, shared with it.
fn userfaultfds(pid: i32) -> Vec<OwnedFd> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_one =
        |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.ends_with("anon_inode:[userfaultfd]"));
    let paths = folder.map(|entry| entry.unwrap().path()).filter(is_one);
    let number = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    paths.map(|path| share_descriptor(pid, number(path)).unwrap()).collect()
}

/// Threads that begin and end all the time: one on its way out at a freeze is none of it.
#[test]
fn threads_on_their_way_out_at_a_freeze() {
    let program = python(
        "def churn():
    while True:
        one = threading.Thread(target=int)
        one.start()
        one.join()
for _ in range(4): threading.Thread(target=churn, daemon=True).start()
say('ready')
while True:
    told()
    say('right')
",
    );
    let sandbox = Sandbox::new("found_threads");
    let mut job = launch(&sandbox, &program);
    for mode in MODES {
        for _ in 0..15 {
            job.checkpoint();
        }
        job.kill_all();
        job.restart(*mode, &[]);
        tell(&job, "right\n");
    }
    job.kill_all();
}

/// A ckptbpf that is killed while it has the program make a system call leaves code in the room behind the vdso's image
/// (`sys/inject.rs`). The program and its checkpoints are as good as ever.
#[test]
fn code_that_a_killed_ckptbpf_has_left_behind_the_vdso() {
    let program =
        python("say('ready')\nnumber = 0\nwhile True:\n told()\n number += 1\n say(f'at {number}')\n");
    let sandbox = Sandbox::new("found_vdso");
    let mut job = launch(&sandbox, &program);
    for (number, mode) in (0..).step_by(2).zip(MODES) {
        let pid = sandbox.outside_pid(job.program()).expect("it runs");
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).expect("it has one");
        let end = u64::from_str_radix(vdso.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
        let memory = std::fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&memory, &[0xcc; 128], end - 1024).unwrap();
        tell(&job, &format!("at {}\n", number + 1));
        job.checkpoint();
        job.kill_all();
        job.restart(*mode, &[]);
        job.program();
        tell(&job, &format!("at {}\n", number + 2));
    }
    job.checkpoint();
    job.kill_all();
}

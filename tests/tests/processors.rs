//! Processors of threads: who had all that there were has all of the new ones, and who chose some keeps those.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ckpt_tests::scenario::{Tool, ckptbpf};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Job, Mode, Sandbox};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(30);

/// Says where its two threads may run: the first, and one that has chosen the processor of the given number.
const PROGRAM: &str = "
import os, select, sys, threading
ready = threading.Event()
def choose():
    os.sched_setaffinity(0, {int(sys.argv[1])})
    ready.set()
    threading.Event().wait()
chooser = threading.Thread(target=choose, daemon=True)
chooser.start()
ready.wait()
while True:
    both = [','.join(map(str, sorted(os.sched_getaffinity(tid)))) for tid in (0, chooser.native_id)]
    print(*both, flush=True)
    select.select([], [], [], 0.005)
";

/// A ckptbpf that is started on the processors that a file names.
fn on_processors(sandbox: &Sandbox) -> Tool {
    let binary = sandbox.dir().join("on-processors");
    let (list, path) = (sandbox.dir().join("processors"), ckptbpf());
    let line = format!("exec taskset -c $(cat {}) {} \"$@\"", list.display(), path.display());
    std::fs::write(&binary, format!("#!/bin/sh\n{line}\n")).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    Tool { binary, ..Tool::default() }
}

#[test]
fn who_had_all_processors_has_all_of_the_new_ones() {
    const NAME: &str = "processors";
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let all: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| own.is_set(cpu).unwrap()).collect();
    let [one, other, ..] = all[..] else { return skip(NAME, "there is one processor here") };
    let sandbox = Sandbox::new(NAME);
    let has = |processors: &str| std::fs::write(sandbox.dir().join("processors"), processors).unwrap();
    let both = format!("{one},{other}");
    has(&both);
    let program = Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]).arg(other.to_string());
    let dir = sandbox.dir().join("images");
    let mut job = Job::launch_by(&sandbox, on_processors(&sandbox), dir, &[], &program);
    let says = |job: &Job<'_>, first: &str| {
        let wanted = format!("{first} {other}\n");
        job.running().wait_for_output(&wanted, SOON);
        let said = String::from_utf8(job.running().stdout()).unwrap();
        assert!(said.starts_with(&wanted), "{said}");
    };
    says(&job, &both);
    let one = one.to_string();
    for (mode, processors) in
        [(Mode::Eager, &one), (Mode::Lazy, &both), (Mode::Lazy, &one), (Mode::Eager, &both)]
    {
        job.checkpoint();
        job.kill_all();
        has(processors);
        job.restart(mode, &[]);
        says(&job, processors);
    }
    job.kill_all();
}

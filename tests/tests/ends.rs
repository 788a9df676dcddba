//! The ends of files that a program reads and writes: read in the freeze, or before it where that is the same.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use ckpt_tests::scenario::verb;
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Job, Mode, Sandbox};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Of each file.
const SIZE: u64 = 1 << 20;

/// Writes in place to `busy` while there is `go`, and through a mapping of its first page to `mapped`. `still` is only open.
const PROGRAM: &str = "
import mmap, os, select
files = [os.open(name, os.O_RDWR) for name in ('still', 'busy', 'mapped')]
page = mmap.mmap(files[2], 4096)
for i in range(10 ** 8):
    going = os.path.exists('go')
    if going:
        os.pwrite(files[1], b'%9d' % i, 0)
        page[:9] = b'%9d' % i
    print(i, going, flush=True)
    select.select([], [], [], 0.005)
";

fn begin(sandbox: &Sandbox) -> Option<Job<'_>> {
    const RELIED_ON: [&str; 4] = ["btrfs", "ext2/ext3", "f2fs", "xfs"];
    let system = sandbox.run("stat -f -c %T .").success().stdout_text();
    if !RELIED_ON.contains(&system.trim()) {
        skip("ends", "times of files are not relied on in this file system");
        return None;
    }
    for name in ["still", "busy", "mapped", "go"] {
        std::fs::write(sandbox.dir().join(name), vec![7; SIZE as usize]).unwrap();
    }
    let job = Job::launch(sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]));
    steps(sandbox, &job, 10);
    Some(job)
}

/// Waits for some more of the program's steps, 5 ms each.
fn steps(sandbox: &Sandbox, job: &Job<'_>, count: usize) {
    let lines = || job.running().stdout().iter().filter(|&&byte| byte == b'\n').count();
    let then = lines();
    sandbox.wait_for("the program to take steps", SOON, || lines() >= then + count);
}

/// How many bytes of files the newest checkpoint has read beside the program, and in the freeze.
fn read(dir: &Path) -> (u64, u64) {
    let log = std::fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let newest = |phase: &str| {
        let event = events.iter().rev().find(|event| event["phase"] == phase).unwrap();
        event["ends_bytes"].as_u64().unwrap()
    };
    (newest("track"), newest("freeze"))
}

/// One that is written to is read in each freeze, and so is one that is mapped, whether or not: not every store gives it a new
/// time.
#[test]
fn the_ends_of_a_file_that_has_not_changed_are_not_read_in_a_freeze() {
    let sandbox = Sandbox::new("ends");
    let Some(mut job) = begin(&sandbox) else { return };
    job.checkpoint();
    assert_eq!(read(job.dir()), (0, 3 * SIZE));
    steps(&sandbox, &job, 10);
    job.checkpoint();
    assert_eq!(read(job.dir()), (SIZE, 2 * SIZE));
    steps(&sandbox, &job, 10);
    job.checkpoint();
    assert_eq!(read(job.dir()), (0, 2 * SIZE));
    // By somebody else, and its time is set back.
    sandbox
        .run("cp -p still old; printf X | dd of=still conv=notrunc status=none; touch -r old still")
        .success();
    steps(&sandbox, &job, 10);
    job.checkpoint();
    assert_eq!(read(job.dir()), (0, 3 * SIZE));
    // It no longer changes.
    std::fs::remove_file(sandbox.dir().join("go")).unwrap();
    job.running().wait_for_output(" False\n", SOON);
    steps(&sandbox, &job, 10);
    job.checkpoint();
    assert_eq!(read(job.dir()), (SIZE, 2 * SIZE));
    steps(&sandbox, &job, 10);
    job.checkpoint_and_end();
    assert_eq!(read(job.dir()), (SIZE, SIZE));
    // What was read beside the program is what the files held in the freeze.
    for mode in [Mode::Eager, Mode::Lazy] {
        job.restart(mode, &[]);
        steps(&sandbox, &job, 20);
        job.checkpoint();
        assert_eq!(read(job.dir()).1, 3 * SIZE, "the first one after a restart");
        steps(&sandbox, &job, 20);
        job.checkpoint_and_end();
        assert_eq!(read(job.dir()), (2 * SIZE, SIZE));
    }
    // And what it is compared with.
    sandbox.run("printf Y | dd of=still conv=notrunc status=none").success();
    let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
    assert!(refused.contains("/still: bytes that it held"), "{refused}");
}

//! A disk that is full or read-only, or that fails, costs a checkpoint, never the program, the last checkpoint or a later one.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::verb;
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Makes the images' disk useless by `spoil`, takes a checkpoint in vain, repairs it, and goes on.
fn a_failed_checkpoint_loses_nothing(name: &str, spoil: &str, repair: &str) {
    let sandbox = Sandbox::new(name);
    sandbox.run("mkdir disk && mount -t tmpfs -o size=16m small disk").success();
    let expected = Expected::of(&sandbox, &victim_cmd("memory").args(["4", "3", "sums", "-", "10"]), None);
    let program = victim_cmd("memory").args(["4", "3", "sums", "signal", "10"]);
    let images = sandbox.dir().join("disk/images");
    let mut job = Job::launch_in(&sandbox, images.clone(), &[], &program);
    job.running().wait_for_output("0 ", SOON);
    let pid = job.program();
    let step = |job: &Job, number: u32| {
        sandbox.kill(pid, Signal::SIGUSR1 as i32).unwrap();
        job.running().wait_for_output(&format!("{number} "), SOON);
    };
    sandbox.run(verb("checkpoint", [&images])).success();
    step(&job, 1);
    // Filling a disk ends in an error, which is the point.
    sandbox.run(spoil);
    sandbox.run(verb("checkpoint", [&images])).expect_code(125);
    sandbox.run(verb("verify", [&images])).success();
    step(&job, 2);
    sandbox.run(repair).success();
    // Relative to the last one that was committed: it holds the pages of both steps.
    sandbox.run(verb("checkpoint", [&images])).success();
    assert_eq!(job.newest(), 2);
    job.kill_all();
    job.restart(Mode::Eager, &["-i", "0"]);
    let pid = job.program();
    sandbox.kill(pid, Signal::SIGUSR1 as i32).unwrap();
    job.wait(SOON).success();
    assert_same("the steps of both runs", &expected.stdout, &job.stdout());
    sandbox.run("umount disk").success();
}

#[test]
fn full_disk() {
    a_failed_checkpoint_loses_nothing(
        "full_disk",
        "dd if=/dev/zero of=disk/filler bs=64k status=none",
        "rm disk/filler",
    );
}

/// What is beyond 256 MiB is written while the program stands still: it goes on if that fails, also where it was to end.
#[test]
fn a_disk_that_is_full_before_the_program_would_end() {
    let sandbox = Sandbox::new("full_disk_kill");
    sandbox.run("mkdir disk && mount -t tmpfs -o size=16m small disk").success();
    let images = sandbox.dir().join("disk/images");
    let random = "import os, select\nkept = [os.urandom(1 << 20) for _ in range(300)]\nfor i in range(1000000):\n    \
                  print(f'{i} ', flush=True)\n    select.select([], [], [], 0.01)";
    let program = Cmd::new("/usr/bin/python3").args(["-c", random]);
    // Nothing is copied beside the program.
    let mut job = Job::launch_in(&sandbox, images.clone(), &["--track", "full"], &program);
    job.running().wait_for_output("0 ", SOON);
    job.program();
    for options in [&["--kill"][..], &[]] {
        let said = sandbox.run(verb("checkpoint", options).arg(&images)).expect_code(125).stderr_text();
        assert!(said.contains("No space left on device"), "{said}");
        let now = job.running().stdout().len();
        sandbox.wait_for("the program to go on", SOON, || job.running().stdout().len() > now);
    }
    job.kill_all();
    sandbox.run("umount disk").success();
}

#[test]
fn read_only_folder() {
    a_failed_checkpoint_loses_nothing("read_only", "chattr +i disk/images", "chattr -i disk/images");
}

/// Adds to a file at each signal.
const WRITER: &str = "
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
file = open('disk/f', 'ab', 0)
for i in range(8):
    print(i, flush=True)
    signal.sigwait({signal.SIGUSR1})
    file.write(bytes([65 + i]) * (4 << 20))
";

/// A checkpoint relies on what the program wrote. The disk of that is a file on another one, which has room for none of it: the
/// program's writes succeed, and then the device fails.
#[test]
fn a_disk_that_fails_to_write_out_what_the_program_wrote() {
    let sandbox = Sandbox::new("failing_disk");
    sandbox
        .run("mkdir small disk && mount -t tmpfs -o size=64m small small && truncate -s 128m small/device")
        .success();
    let make = "mkfs.ext4 -q -O ^has_journal -E nodiscard small/device && mount -o loop small/device disk";
    if sandbox.run(make).code() != 0 {
        return skip(
            "a_disk_that_fails_to_write_out_what_the_program_wrote",
            "no ext4 on a loop device here",
        );
    }
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", WRITER]));
    job.running().wait_for_output("0\n", SOON);
    let step = |job: &Job, number: u32| {
        job.signal(Signal::SIGUSR1);
        job.running().wait_for_output(&format!("{number}\n"), SOON);
    };
    step(&job, 1);
    assert_eq!(job.checkpoint().id, 1);
    // Filling a disk ends in an error, which is the point.
    sandbox.run("dd if=/dev/zero of=small/filler bs=64k status=none");
    for (number, options) in [(2, &[][..]), (3, &["--kill"])] {
        step(&job, number);
        let failed = sandbox.run(verb("checkpoint", options).arg(job.dir())).expect_code(125).stderr_text();
        assert!(failed.contains("disk/f: cannot write out what the program has written to it"), "{failed}");
        assert_eq!(job.newest(), 1);
    }
    sandbox.run("rm small/filler").success();
    step(&job, 4);
    assert_eq!(job.checkpoint().id, 2);
    step(&job, 5);
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    step(&job, 5);
    assert_eq!(job.checkpoint().id, 3);
    step(&job, 6);
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    (6..8).for_each(|number| step(&job, number));
    job.signal(Signal::SIGUSR1);
    job.wait(SOON).success();
    assert_same("the output of all runs", b"0\n1\n2\n3\n4\n5\n6\n7\n", &job.stdout());
    let expected: Vec<u8> = (b'A'..=b'H').flat_map(|byte| vec![byte; 4 << 20]).collect();
    assert_same("the file", &expected, &std::fs::read(sandbox.see(&sandbox.dir().join("disk/f"))).unwrap());
    sandbox.run("umount disk small").success();
}

//! A disk that is full or read-only costs a checkpoint, never the program, the last checkpoint or a later one.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::verb;
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

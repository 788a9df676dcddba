//! A disk that is full or read-only costs a checkpoint, never the program, the last checkpoint or a later one.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::verb;
use ckpt_tests::{Expected, Job, Mode, Sandbox, assert_same, victim_cmd};
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

#[test]
fn read_only_folder() {
    a_failed_checkpoint_loses_nothing("read_only", "chattr +i disk/images", "chattr -i disk/images");
}

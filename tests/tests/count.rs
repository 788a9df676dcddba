//! The first scenario of all: a counter goes on from its checkpoint, and nobody can tell from what it wrote.

use std::time::Duration;

use ckpt_tests::scenario::{Survival, survive, verb};
use ckpt_tests::{Expected, Job, Mode, Sandbox, assert_same, victim_cmd};

const SOON: Duration = Duration::from_secs(30);
/// Steps of 3 ms: six seconds, longer than five rounds.
const STEPS: &str = "2000";

#[test]
fn one_checkpoint_one_restart() {
    let sandbox = Sandbox::new("one_checkpoint");
    let program = victim_cmd("count_static").args(["numbers", "300", "3000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    let taken = job.checkpoint();
    assert_eq!((taken.id, taken.parent, taken.kind.as_str(), taken.complete), (1, None, "full", true));
    assert!(taken.pages > 0 && taken.bytes_stored > 0 && taken.tasks == 1, "{taken:?}");
    job.kill_all();
    sandbox.run(verb("verify", [job.dir()])).success();
    sandbox.run(verb("inspect", [job.dir()])).success();
    job.restart(Mode::Eager, &[]);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("numbers")).unwrap());
}

#[test]
fn checkpoint_and_end_are_one_instant() {
    let sandbox = Sandbox::new("exit_after");
    let program = victim_cmd("count_static").args(["numbers", "300", "3000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let mut job = Job::launch(&sandbox, &["-i", "0.3", "--exit-after-ckpt"], &program);
    let printed = job.wait(SOON).expect_code(85).stdout;
    let written = std::fs::read(sandbox.dir().join("numbers")).unwrap();
    assert!(printed.len() < expected.stdout.len(), "it ran to its end");
    job.restart(Mode::Eager, &["-i", "0"]);
    let rest = job.wait(SOON).success().stdout;
    // One instant: neither what the first run printed nor its file needs a cut.
    assert_same("both runs' output", &expected.stdout, &[printed, rest].concat());
    assert!(expected.file.starts_with(&written), "the file holds more than the checkpoint knows");
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("numbers")).unwrap());
}

#[test]
fn count_static_survives() {
    survive(
        &Survival::of("count_static", victim_cmd("count_static").args(["f", STEPS, "3000"])).writing("f"),
    );
}

#[test]
fn count_survives() {
    survive(&Survival::of("count", victim_cmd("count").args(["f", STEPS, "3000"])).writing("f"));
}

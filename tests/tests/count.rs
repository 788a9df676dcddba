//! The first scenario of all: a counter goes on from its checkpoint, and nobody can tell from what it wrote.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{MODES, Survival, held, let_go, survive, verb};
use ckpt_tests::{Expected, Job, Mode, Sandbox, assert_same, victim_cmd};

const SOON: Duration = Duration::from_secs(30);
/// Steps of 3 ms: as long as five rounds take where nothing else runs.
const STEPS: &str = "1200";

#[test]
fn one_checkpoint_one_restart() {
    let sandbox = Sandbox::new("one_checkpoint");
    let program = victim_cmd("count_static").args(["numbers", "300", "3000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n50 ", SOON);
    let taken = job.checkpoint();
    assert_eq!((taken.id, taken.parent, taken.kind.as_str(), taken.complete), (1, None, "full", true));
    assert!(taken.pages > 0 && taken.bytes_stored > 0 && taken.tasks == 1, "{taken:?}");
    job.kill_all();
    sandbox.run(verb("verify", [job.dir()])).success();
    sandbox.run(verb("inspect", [job.dir()])).success();
    job.restart(Mode::Eager, &[]);
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("numbers")).unwrap());
}

/// `--exit-after-ckpt`, twice: what both runs and the rest printed needs no cut, nor does the file.
fn one_instant(name: &str, period: &str) {
    let sandbox = Sandbox::new(&format!("exit_after_{name}"));
    let program = victim_cmd(name).args(["numbers", "300", period]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let mut job = Job::launch(&sandbox, &["-i", "0.3", "--exit-after-ckpt"], &held(&sandbox, program));
    let mut printed = Vec::new();
    for mode in MODES {
        printed.extend(job.wait(SOON).expect_code(85).stdout);
        let written = std::fs::read(sandbox.dir().join("numbers")).unwrap();
        assert!(printed.len() < expected.stdout.len(), "it ran to its end");
        assert_same("what it has printed", &expected.stdout[..printed.len()], &printed);
        assert_same("the file", &expected.file[..written.len()], &written);
        job.restart(*mode, &["-i", if *mode == Mode::Eager { "0.1" } else { "0" }, "--exit-after-ckpt"]);
    }
    let_go(&sandbox);
    printed.extend(job.wait(SOON).success().stdout);
    assert_same("the runs' output", &expected.stdout, &printed);
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("numbers")).unwrap());
}

#[test]
fn checkpoint_and_end_are_one_instant() {
    one_instant("count_static", "3000");
}

#[test]
fn checkpoint_and_end_are_one_instant_in_python() {
    one_instant("count.py", "3000");
}

#[test]
fn checkpoint_and_end_are_one_instant_in_bash() {
    one_instant("count.sh", "0.003");
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

#[test]
fn count_in_rust_survives() {
    survive(&Survival::of("count_rust", victim_cmd("count_rust").args(["f", STEPS, "3000"])).writing("f"));
}

//! Trees of processes come back with their ids, parents, groups, sessions, and the ends of those that have ended.

// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Survival, held, let_go, survive, verb};
use ckpt_tests::{Job, Mode, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn fifteen_processes_three_deep() {
    survive(&Survival::of("forktree", victim_cmd("forktree").args(["80", "50000"])));
}

#[test]
fn a_child_that_has_ended_and_was_not_waited_for() {
    survive(&Survival::of("forktree_zombie", victim_cmd("forktree").args(["80", "50000", "zombie"])));
}

#[test]
fn orphans_sessions_and_groups_without_their_leaders() {
    survive(&Survival::of("family", victim_cmd("family").args(["1000", "3000"])));
}

/// A program that executes another one while its child goes on in the memory that it leaves: it is that other one's that is saved.
#[test]
fn what_is_executed_beside_a_child_that_keeps_the_memory() {
    let sandbox = Sandbox::new("leftover");
    let program = victim_cmd("leftover").args(["400", "2000"]);
    let undisturbed = sandbox.spawn(program.clone());
    undisturbed.wait_for_output("here\n", SOON);
    undisturbed.kill(Signal::SIGUSR1);
    let expected = undisturbed.wait(SOON).success().stdout;
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("here\n", SOON);
    // Its memory is looked at, and then another's.
    let said = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125).stderr_text();
    assert!(said.contains("shares its memory"), "{said}");
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output("\n3 ", SOON);
    for mode in [Mode::Eager, Mode::Lazy] {
        job.checkpoint();
        assert_eq!(job.checkpoint().tasks, 2);
        job.kill_all();
        job.restart(mode, &[]);
        // However far it has come: its last step is still to come.
        job.program();
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected, &job.stdout());
}

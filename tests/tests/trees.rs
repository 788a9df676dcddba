//! Trees of processes come back with their ids, parents, groups, sessions, and the ends of those that have ended.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::victim_cmd;

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

//! Threads come back with everything the kernel keeps for each: registers of every width, thread-local storage, masks,
//! robust locks, and the word that `pthread_join` waits for.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::victim_cmd;

fn survives(name: &str, args: &[&str]) {
    survive(&Survival { rounds: 3, ..Survival::of(name, victim_cmd(name).args(args)) });
}

#[test]
fn sixteen_with_a_mutex_and_a_condition_variable() {
    survives("threads16", &["1000", "3000"]);
}

#[test]
fn openmp() {
    survives("openmp", &["1000", "3000"]);
}

#[test]
fn registers_of_every_width() {
    survives("fpu", &["2500", "3000"]);
}

/// Each round: three threads wait with another mask than their own, a fourth is joined and dies with a robust lock.
#[test]
fn waiting_with_another_mask_joined_and_dying_with_a_lock() {
    survives("suspended", &["60", "150000"]);
}

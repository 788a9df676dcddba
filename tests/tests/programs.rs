//! Real shapes of programs survive: threads, every kind of register, signals and sleep.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Sandbox, victim_cmd};

fn survives(name: &str, args: &[&str]) {
    survive(&Survival::of(name, victim_cmd(name).args(args)));
}

#[test]
fn sixteen_threads() {
    survives("threads16", &["1200", "3000"]);
}

/// Checkpoints come between and in the midst of it: the first thread ends, and another one gets its id.
#[test]
fn executed_again_and_again_by_another_thread_than_the_first() {
    let program = victim_cmd("execs").args(["1000", "2000"]);
    survive(&Survival { interval: "0.05", ..Survival::of("execs", program) });
}

#[test]
fn openmp() {
    survives("openmp", &["1000", "3000"]);
}

#[test]
fn registers_of_every_width() {
    survives("fpu", &["1200", "3000"]);
}

/// Nearly each checkpoint finds both threads in the midst of one, the first too, in which calls are injected.
fn in_restartable_sequences(name: &str, options: &[&str]) {
    let program = victim_cmd("rseq").args(["400", "3000"]);
    survive(&Survival { rounds: 4, options, ..Survival::of(name, program) });
}

#[test]
fn restartable_sequences() {
    in_restartable_sequences("rseq", &[]);
}

#[test]
fn restartable_sequences_without_bpf() {
    in_restartable_sequences("rseq_injected", &["--no-bpf"]);
}

/// Each round: three threads wait with another mask than their own, a fourth is joined and dies with a robust lock.
#[test]
fn waiting_with_another_mask_joined_and_dying_with_a_lock() {
    survives("suspended", &["25", "150000"]);
}

#[test]
fn every_kind_of_sleep() {
    let sandbox = Sandbox::new("sleeps_undisturbed");
    let printed = sandbox.run(victim_cmd("sleeps").args(["50", "1"])).success().stdout_text();
    assert_eq!(printed.lines().filter(|line| line.ends_with(" ok")).count(), 17);
    drop(sandbox);
    survives("sleeps", &["1200", "3"]);
}

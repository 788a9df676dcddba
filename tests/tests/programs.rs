//! Real shapes of programs survive: threads, every kind of register, signals and sleep.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Sandbox, victim_cmd};

fn survives(name: &str, args: &[&str]) {
    survive(&Survival::of(name, victim_cmd(name).args(args)));
}

#[test]
fn sixteen_threads() {
    survives("threads16", &["2000", "3000"]);
}

#[test]
fn openmp() {
    survives("openmp", &["2000", "3000"]);
}

#[test]
fn registers() {
    survives("fpu", &["2000", "3000"]);
}

#[test]
fn signals() {
    survives("signals", &["2000", "3000"]);
}

#[test]
fn every_kind_of_sleep() {
    let sandbox = Sandbox::new("sleeps_undisturbed");
    let printed = sandbox.run(victim_cmd("sleeps").args(["50", "1"])).success().stdout_text();
    assert_eq!(printed.lines().filter(|line| line.ends_with(" ok")).count(), 12);
    drop(sandbox);
    survives("sleeps", &["1500", "6"]);
}

//! Real shapes of programs survive: threads, numpy, pipelines, trees, sleeps, and every kind of state.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Sandbox, victim_cmd};

fn survives(name: &str, args: &[&str]) {
    survive(&Survival::of(name, victim_cmd(name).args(args)));
}

#[test]
fn numpy() {
    survives("matrix.py", &["2000", "3000"]);
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
fn pipeline() {
    survives("pipeline.sh", &["1500", "0.004"]);
}

#[test]
fn forktree() {
    survives("forktree", &["120", "50000"]);
}

#[test]
fn forktree_with_a_zombie() {
    survives("forktree", &["120", "50000", "zombie"]);
}

#[test]
fn registers() {
    survives("fpu", &["2000", "3000"]);
}

#[test]
fn signals() {
    survives("signals", &["1000", "3000"]);
}

#[test]
fn descriptors() {
    survives("fds", &[".", "1500", "1000"]);
}

#[test]
fn mappings() {
    survives("maps", &[".", "2000", "3000"]);
}

#[test]
fn every_kind_of_sleep() {
    let sandbox = Sandbox::new("sleeps_undisturbed");
    let printed = sandbox.run(victim_cmd("sleeps").args(["50", "1"])).success().stdout_text();
    assert_eq!(printed.lines().filter(|line| line.ends_with(" ok")).count(), 12);
    drop(sandbox);
    survives("sleeps", &["1500", "6"]);
}

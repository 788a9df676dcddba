//! What a program has told the kernel about its threads comes back as the program itself sees it, eagerly and lazily, with
//! eBPF and without.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::victim_cmd;

fn survives(name: &str, case: &str, options: &[&str]) {
    let program = victim_cmd("taskstate").args([case, "400", "3000"]);
    survive(&Survival { rounds: 4, options, ..Survival::of(name, program) });
}

#[test]
fn what_prctl_sets_for_each_thread_and_for_all() {
    survives("controls", "controls", &[]);
}

#[test]
fn what_prctl_sets_by_injected_calls() {
    survives("controls_injected", "controls", &["--no-bpf"]);
}

#[test]
fn threads_with_different_ids() {
    survives("thread_ids", "ids", &[]);
}

#[test]
fn a_parent_s_death_is_told_and_orphans_come_to_the_subreaper() {
    survives("parent_death", "death", &[]);
}

//! The log of write faults: it decides about rounds, never about what is saved, and it is there only while it is used.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Survival, ckptbpf, survive};
use ckpt_tests::{Cmd, Job, Sandbox, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// What events.jsonl has of one phase, oldest first.
fn events(sandbox: &Sandbox, job: &Job, phase: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(sandbox.see(job.dir()).join("events.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["phase"] == phase).collect()
}

/// `mib` of memory; after each step, before which `gate` is waited for, `percent` of the pages are others.
fn memory(mib: u32, steps: u32, gate: &str, percent: u32) -> Cmd {
    let [mib, steps, percent] = [mib, steps, percent].map(|n| n.to_string());
    victim_cmd("memory").args([mib.as_str(), &steps, "sums", gate, &percent])
}

/// More pages than a freeze is left with, half of them written to again in each step, all through the checkpoints.
fn busy(name: &str, options: &[&str]) {
    let program = memory(24, 400, "-", 50);
    survive(&Survival { rounds: 2, options, ..Survival::of(name, program).writing("sums") });
}

#[test]
fn memory_is_as_it_was_with_a_log_that_is_right() {
    busy("faults_right", &[]);
}

#[test]
fn memory_is_as_it_was_with_a_log_that_knows_nothing() {
    busy("faults_silent", &["--fault-log", "silent"]);
}

#[test]
fn memory_is_as_it_was_with_a_log_that_invents() {
    busy("faults_wild", &["--fault-log", "wild"]);
}

#[test]
fn memory_is_as_it_was_with_a_log_that_loses() {
    busy("faults_lost", &["--ring-bytes", "4096"]);
}

/// A fault that is under way when a scan comes by can be on either side of it: up to one a scan and thread.
const UNDER_WAY: u64 = 8;

/// Freezes of a program that writes all the time, at least three; the first is of a full checkpoint. On a busy machine the
/// program may not get to run between the last round and the freeze: it goes on until one freeze has found pages.
fn freezes(name: &str, options: &[&str]) -> Vec<Value> {
    let sandbox = Sandbox::new(name);
    let mut job = Job::launch(&sandbox, options, &memory(64, 100_000, "-", 90));
    let steps = || job.running().stdout().iter().filter(|&&byte| byte == b'\n').count();
    let has_found = |freeze: &Value| freeze["pages"].as_u64() > Some(UNDER_WAY);
    for taken in 0..30 {
        if taken >= 3 && events(&sandbox, &job, "freeze").iter().any(has_found) {
            break;
        }
        // A whole step before each: its first round is a large one.
        let before = steps();
        sandbox.wait_for("two more steps", SOON, || steps() >= before + 2);
        job.checkpoint();
    }
    let found = events(&sandbox, &job, "freeze");
    job.kill_all();
    found
}

#[test]
fn a_log_that_is_right_knows_what_scans_find() {
    let freezes = freezes("faults_known", &[]);
    assert!(freezes.iter().any(|freeze| freeze["faults_logged"].as_u64() > Some(0)), "{freezes:?}");
    for freeze in freezes {
        let count = |name: &str| freeze[name].as_u64().unwrap();
        assert_eq!(count("faults_lost"), 0, "{freeze}");
        assert!(count("faults_logged") > 0 || count("pages") <= UNDER_WAY, "{freeze}");
        assert!(count("faults_unlogged") <= UNDER_WAY && count("faults_gone") <= UNDER_WAY, "{freeze}");
    }
}

#[test]
fn what_a_silent_log_does_not_know_is_counted() {
    let freezes = freezes("faults_unknown", &["--fault-log", "silent"]);
    assert!(freezes.iter().all(|freeze| freeze["faults_logged"] == 0), "{freezes:?}");
    assert!(freezes.iter().any(|freeze| freeze["faults_unlogged"].as_u64() > Some(0)), "{freezes:?}");
}

#[test]
fn what_a_wild_log_invents_is_counted() {
    for freeze in freezes("faults_invented", &["--fault-log", "wild"]) {
        assert!(freeze["faults_gone"].as_u64() >= Some(10_000), "{freeze}");
    }
}

#[test]
fn lost_faults_are_counted() {
    let lost = freezes("faults_full", &["--ring-bytes", "4096"]);
    assert!(lost.iter().any(|freeze| freeze["faults_lost"].as_u64() > Some(0)), "{lost:?}");
}

/// Rounds of two checkpoints of a program that does nothing meanwhile, all of it written to before each.
fn rounds_of_an_idle_program(name: &str, options: &[&str]) -> Vec<u64> {
    let sandbox = Sandbox::new(name);
    let mut job = Job::launch(&sandbox, options, &memory(64, 10, "signal", 100));
    job.running().wait_for_output("0 ", SOON);
    job.checkpoint();
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output("\n1 ", SOON);
    job.checkpoint();
    let rounds =
        events(&sandbox, &job, "track").iter().map(|event| event["rounds"].as_u64().unwrap()).collect();
    job.kill_all();
    rounds
}

#[test]
fn a_round_that_would_find_nothing_is_not_made() {
    assert_eq!(rounds_of_an_idle_program("rounds_logged", &[]), [1, 1]);
}

#[test]
fn without_bpf_the_scans_decide() {
    assert_eq!(rounds_of_an_idle_program("rounds_scanned", &["--no-bpf"]), [2, 2]);
}

/// The tracepoints that ckptbpf has programs on.
fn attached(sandbox: &Sandbox, supervisor: i32) -> Vec<String> {
    let folder = sandbox.root().join(format!("proc/{supervisor}/fdinfo"));
    let infos = std::fs::read_dir(folder).unwrap().flatten();
    // One that is closed meanwhile is as good as closed before.
    let texts = infos.filter_map(|info| std::fs::read_to_string(info.path()).ok());
    let named = |text: String| text.lines().find_map(|l| Some(l.strip_prefix("tp_name:")?.trim().to_owned()));
    texts.filter_map(named).collect()
}

#[test]
fn faults_are_logged_only_while_a_checkpoint_copies() {
    let sandbox = Sandbox::new("faults_attached");
    let mut job = Job::launch(&sandbox, &[], &memory(64, 100_000, "-", 90));
    job.running().wait_for_output("\n2 ", SOON);
    let supervisor = job.running().pid;
    let faults = |seen: &[String]| seen.iter().filter(|name| name.starts_with("page_fault_")).count();
    assert_eq!(faults(&attached(&sandbox, supervisor)), 0, "before the first one");
    let binary = ckptbpf();
    let again =
        format!("until [ -e seen ]; do {} checkpoint {}; done", binary.display(), job.dir().display());
    let asking = sandbox.spawn(Cmd::sh(&again));
    sandbox.wait_for("both programs to be attached", SOON, || faults(&attached(&sandbox, supervisor)) == 2);
    sandbox.run("touch seen").success();
    asking.wait(SOON).success();
    let left = attached(&sandbox, supervisor);
    assert!(left.contains(&"sched_process_fork".to_owned()), "it can be seen: {left:?}");
    assert_eq!(faults(&left), 0, "{left:?}");
    job.kill_all();
}

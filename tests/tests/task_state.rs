//! What a program has told the kernel about its threads comes back as the program itself sees it, eagerly and lazily, with
//! eBPF and without.

use std::time::Duration;

use ckpt_tests::scenario::{MODES, Mode, Survival, survive, verb};
use ckpt_tests::{Cmd, Job, Sandbox, victim_cmd};
use serde_json::Value;

fn survives(name: &str, case: &str, options: &[&str]) {
    let program = victim_cmd("taskstate").args([case, "400", "3000"]);
    // An odd number: what each restart turned round would be right again after an even one.
    survive(&Survival { rounds: 3, options, ..Survival::of(name, program) });
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

#[test]
fn children_whose_end_tells_their_parent_something_else() {
    survives("ends", "ends", &[]);
}

fn is_kept(case: &str) {
    let program = victim_cmd("kept").args([case, ".", "400", "3000"]);
    survive(&Survival { rounds: 4, ..Survival::of(case, program) });
}

#[test]
fn the_nice_value_of_a_session() {
    is_kept("autogroup");
}

/// What is left of alarm(2), and that timers of CPU time go on ringing.
#[test]
fn interval_timers() {
    is_kept("itimers");
}

/// By SIGSTOP and SIGTSTP, continued and stopped again.
#[test]
fn a_stopped_child() {
    is_kept("stopped");
}

#[test]
fn posix_timers_of_every_kind() {
    survives("posix_timers", "counted_timers", &[]);
}

#[test]
fn posix_timers_without_bpf() {
    survives("posix_timers_injected", "timers", &["--no-bpf"]);
}

#[test]
fn instructions_and_memory_that_are_denied() {
    survives("denials", "denials", &[]);
}

#[test]
fn denials_without_bpf() {
    survives("denials_injected", "denials", &["--no-bpf"]);
}

#[test]
fn queued_signals_keep_their_order_and_contents() {
    survives("queued_signals", "queued", &[]);
}

#[test]
fn memory_policies_of_threads() {
    survives("memory_policy", "policy", &[]);
}

#[test]
fn memory_policies_without_bpf() {
    survives("memory_policy_injected", "policy", &["--no-bpf"]);
}

#[test]
fn personalities_futex_slots_and_calls_that_are_handed_back() {
    survives("rest", "rest", &[]);
}

#[test]
fn root_directories_of_their_own() {
    survives("root", "root", &[]);
}

#[test]
fn session_keyrings_with_a_name() {
    survives("keyring", "keyring", &[]);
}

#[test]
fn session_keyrings_without_bpf() {
    survives("keyring_injected", "keyring", &["--no-bpf"]);
}

fn goes_on_without_its_first_thread(name: &str, which: &str, options: &[&str]) {
    let program = victim_cmd("leaderless").args([which, "400", "3000"]);
    survive(&Survival { rounds: 3, options, ..Survival::of(name, program).writing("log") });
}

#[test]
fn a_program_without_its_first_thread() {
    goes_on_without_its_first_thread("leaderless", "itself", &[]);
}

#[test]
fn a_child_without_its_first_thread() {
    goes_on_without_its_first_thread("leaderless_child", "child", &[]);
}

#[test]
fn without_its_first_thread_and_without_bpf() {
    goes_on_without_its_first_thread("leaderless_injected", "child", &["--no-bpf"]);
}

/// What no call sets: a limitation. It is said, shown and written down, and asserted what happens instead.
#[test]
fn cpu_time_begins_anew_after_a_restart() {
    const SOON: Duration = Duration::from_secs(30);
    let sandbox = Sandbox::new("cpu_time");
    let program = "import os, select, time
while time.process_time() < 1: pass
print('burnt', sum(os.times()[:2]) > 0.9, flush=True)
while time.process_time() >= 1: select.select([], [], [], 0.01)
print('anew', sum(os.times()[:2]) < 0.9, time.thread_time() < 1, flush=True)
while True: select.select([], [], [], 0.01)
";
    let program = Cmd::new("/usr/bin/python3").args(["-c", program]);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("burnt True\n", SOON);
    job.checkpoint();
    let shown = sandbox.run(verb("inspect", ["--json"]).arg(job.image(1))).success();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let before = shown["processes"][0]["cpu_time_s"].as_f64().unwrap();
    assert!((1.0..60.0).contains(&before), "{before} s");
    for (at, mode) in MODES.iter().enumerate() {
        job.kill_all();
        job.restart_at(1, *mode, &["-v"]);
        job.running().wait_for_output("anew True True\n", SOON);
        // It says so once the program runs.
        sandbox.wait_for("what it says", SOON, || {
            job.running().stderr().contains("CPU time counts from 0 again")
        });
        let restarts = || -> Vec<Value> {
            let events = std::fs::read_to_string(job.dir().join("events.jsonl")).unwrap();
            // The last line may be half written.
            let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events.filter(|event| event["phase"] == "restart").collect()
        };
        sandbox.wait_for("its event", SOON, || restarts().len() == at + 1);
        let told = restarts()[at]["cpu_us_before"].as_f64().unwrap();
        assert!((told / 1e6 - before).abs() < 1e-3, "{told} us and not {before} s");
    }
    // The next restart adds what was there before this one.
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Eager, &["-v"]);
    sandbox.wait_for("what it says", SOON, || job.running().stderr().contains("CPU time counts"));
    job.kill_all();
}

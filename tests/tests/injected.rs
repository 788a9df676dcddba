//! With BPF no system call is injected once memory is tracked, and smaps is not read; without it they are; a lost event
//! is counted.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::{Cmd, Job, Sandbox, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// One number of each freeze in events.jsonl, oldest first; `None` where the event does not have it.
fn of_freezes(sandbox: &Sandbox, job: &Job, name: &str) -> Vec<Option<u64>> {
    let text = std::fs::read_to_string(sandbox.see(job.dir()).join("events.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|event| event["phase"] == "freeze").map(|event| event[name].as_u64()).collect()
}

/// Where the time of a freeze goes, in parts.
const PARTS: [&str; 7] =
    ["stop_us", "hidden_us", "descriptors_us", "mappings_us", "tasks_us", "scan_us", "copy_us"];

/// Of three checkpoints: system calls injected, processes whose smaps was read, events lost.
fn three_checkpoints(name: &str, options: &[&str]) -> [Vec<Option<u64>>; 3] {
    let sandbox = Sandbox::new(name);
    let mut job = Job::launch(&sandbox, options, &victim_cmd("threads16").args(["100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    for _ in 0..3 {
        job.checkpoint();
    }
    let found = ["injected", "smaps", "lost"].map(|name| of_freezes(&sandbox, &job, name));
    let parts = PARTS.map(|part| of_freezes(&sandbox, &job, part));
    for (at, whole) in of_freezes(&sandbox, &job, "microseconds").into_iter().enumerate() {
        let sum: u64 = parts.iter().map(|part| part[at].unwrap()).sum();
        assert!(0 < sum && sum <= whole.unwrap(), "{sum} of {whole:?}: {parts:?}");
    }
    sandbox.kill(job.program(), Signal::SIGTERM as i32).unwrap();
    job.wait(SOON).expect_code(143);
    found
}

#[test]
fn none_with_bpf() {
    assert_eq!(three_checkpoints("injected_none", &[]), [const { [Some(0); 3] }; 3]);
}

#[test]
fn some_without() {
    let [injected, smaps, lost] = three_checkpoints("injected_some", &["--no-bpf"]);
    assert_eq!(smaps, [Some(1); 3]);
    assert!(injected.iter().all(|n| n.is_some_and(|n| n > 17)), "{injected:?}");
    assert_eq!(lost, [None; 3]);
}

/// A ring of one page holds a hundred events; the tree is read anyway.
#[test]
fn lost_forks_are_counted_and_change_nothing() {
    let sandbox = Sandbox::new("lost_events");
    let wait = |file| format!("while [ ! -e {file} ]; do :; done");
    let line = "for ((i = 0; i < 400; i++)); do (:); done; echo forked";
    let program = Cmd::sh(&format!("echo begun; {}; {line}; {}; echo end", wait("first"), wait("second")));
    let mut job = Job::launch(&sandbox, &["--ring-bytes", "4096"], &program);
    job.running().wait_for_output("begun", SOON);
    job.checkpoint();
    sandbox.run("touch first").success();
    job.running().wait_for_output("forked", SOON);
    let taken = job.checkpoint();
    assert!(taken.complete && taken.tasks == 1, "{taken:?}");
    let lost = of_freezes(&sandbox, &job, "lost");
    assert_eq!(lost[0], Some(0));
    assert!(lost[1].is_some_and(|n| n > 400), "forks and exits, less what the ring holds: {lost:?}");
    sandbox.run("touch second").success();
    let ended = job.wait(SOON).success();
    assert_eq!(ended.stdout_text(), "begun\nforked\nend\n");
}

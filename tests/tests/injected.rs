//! With BPF no system call is injected once memory is tracked, and smaps is not read; without it they are; a lost event
//! is counted.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::MODES;
use ckpt_tests::{Cmd, Expected, Job, Sandbox, assert_same, victim_cmd};
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

/// The log has room for a hundred of them. Nothing is taken from it: which processes there are, and which memory each of them
/// has, is read in the freeze, so what the log has missed is in the image all the same.
#[test]
fn forks_execs_and_exits_that_nobody_heard_of_are_in_the_next_checkpoint() {
    const EVENTS: u64 = 400 + 400 + 3 + 2 + 2;
    let sandbox = Sandbox::with_limit("lost_events_of_the_living", Duration::from_secs(170));
    let program = |gate: &str| victim_cmd("unheard").arg(gate);
    let expected = Expected::of(&sandbox, &program("-"), None);
    let mut job = Job::launch(&sandbox, &["--ring-bytes", "4096"], &program("signal"));
    job.running().wait_for_output("before noise", SOON);
    // The first finds the children, the second watches their memory.
    assert_eq!([job.checkpoint().tasks, job.checkpoint().tasks], [5, 5]);
    let root = job.program();
    for act in ["unheard", "change"] {
        sandbox.kill(root, Signal::SIGUSR1 as i32).unwrap();
        job.running().wait_for_output(&format!("before {act}"), SOON);
    }
    let unheard = job.checkpoint();
    let [forks, execs, exits, lost] =
        ["forks", "execs", "exits", "lost"].map(|name| of_freezes(&sandbox, &job, name)[2].unwrap());
    assert_eq!((execs, forks + exits + lost), (0, EVENTS), "execs heard of, and all events; {lost} are lost");
    assert!(lost > EVENTS / 2, "{lost} of {EVENTS} are lost");
    assert_eq!(unheard.tasks, 6, "{unheard:?}");
    // From here on all of them are watched.
    assert_eq!(job.checkpoint().tasks, 6);
    sandbox.kill(root, Signal::SIGUSR1 as i32).unwrap();
    job.running().wait_for_output("before sums", SOON);
    let changed = job.checkpoint();
    assert!(changed.kind == "delta" && changed.pages < unheard.pages / 4, "{unheard:?}, {changed:?}");
    job.kill_all();
    let restarts =
        [(unheard.id, &["before sums", "all as it should be"][..]), (changed.id, &["all as it should be"])];
    for (from, words) in restarts {
        for mode in MODES {
            job.restart_at(from, *mode, &["-i", "0"]);
            let root = job.program();
            for word in words {
                sandbox.kill(root, Signal::SIGUSR1 as i32).unwrap();
                job.running().wait_for_output(word, SOON);
            }
            job.wait(SOON).success();
            assert_same(&format!("from {from}, {mode:?}"), &expected.stdout, &job.stdout());
        }
    }
}

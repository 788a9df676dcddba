//! What ckptbpf says: nothing, unless there is something to say, and then what to do.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{stepper, verb, walk};
use ckpt_tests::{Cmd, Job, Mode, Sandbox, victim_cmd};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_quiet_job_says_nothing_and_a_verbose_one_a_line_a_checkpoint() {
    let sandbox = Sandbox::new("lines");
    let told = |verbosity: &[&str]| {
        let images = sandbox.dir().join(format!("images{}", verbosity.len()));
        let options = [&["-i", "0.05"], verbosity].concat();
        let mut job = Job::launch_in(&sandbox, images, &options, &stepper(3));
        job.wait_for_checkpoint(2);
        job.running().wait_for_output("0 ", SOON);
        job.walk().success().stderr_text()
    };
    assert_eq!(told(&[]), "");
    let lines = told(&["-v"]);
    let start = lines.lines().next().unwrap_or_default();
    let words = ["ckptbpf: ", "user root): checkpoint every 50 ms in /", "restart: ckptbpf restart /"];
    assert!(words.iter().all(|word| start.contains(word)), "{lines}");
    assert!(lines.contains("\nckptbpf: checkpoint 1 (full): "), "{lines}");
    assert!(lines.contains("\nckptbpf: checkpoint 2 (delta): "), "{lines}");
}

#[test]
fn twice_verbose_it_tells_phases_and_what_ebpf_says() {
    let sandbox = Sandbox::new("phases");
    let program = Cmd::sh("while [ ! -e end ]; do /bin/true; echo again; done");
    let mut job = Job::launch(&sandbox, &["-vv"], &program);
    job.running().wait_for_output("again\n", SOON);
    job.checkpoint();
    let from = job.running().stdout().len();
    sandbox.wait_for("another child", SOON, || job.running().stdout().len() > from);
    job.checkpoint();
    std::fs::write(sandbox.dir().join("end"), "").unwrap();
    let said = job.wait(SOON).success().stderr_text();
    for phase in ["track", "freeze", "write", "commit"] {
        let line = said.lines().find(|line| line.starts_with(&format!("ckptbpf: {phase}: ")));
        assert!(line.is_some_and(|line| line.contains(" id 1")), "no phase {phase}: {said}");
    }
    assert!(said.contains("ckptbpf: exec of process "), "{said}");
}

#[test]
fn an_abnormal_end_names_the_way_back() {
    let sandbox = Sandbox::new("end_line");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("count_static").args(["f", "100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    job.checkpoint();
    job.signal(nix::sys::signal::Signal::SIGKILL);
    let told = job.wait(SOON).expect_code(137).stderr_text();
    assert!(
        told.starts_with("ckptbpf: last checkpoint 1, ") && told.contains("restart with: ckptbpf restart /")
    );
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn events_tell_what_a_job_went_through() {
    let sandbox = Sandbox::new("events");
    let mut job = Job::launch(&sandbox, &[], &stepper(3));
    job.running().wait_for_output("0 ", SOON);
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    job.walk().success();
    let text = std::fs::read_to_string(job.dir().join("events.jsonl")).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["phase"].as_str().unwrap()).collect();
    // The first one is looked at before it has a number.
    assert_eq!(names, ["look", "track", "freeze", "write", "commit", "checkpoint", "restart"], "{text}");
    for (event, name) in events.iter().zip(names) {
        assert!(event["id"] == 1 || name == "look", "{text}");
        assert!(
            event["time"].as_f64().unwrap() > 1e9 && event["microseconds"].as_u64().unwrap() > 0,
            "{text}"
        );
    }
    assert!(events[5]["pages"].as_u64().unwrap() > 0, "{text}");
}

#[test]
fn a_descriptor_of_whoever_started_ckptbpf_is_called_that() {
    let sandbox = Sandbox::new("inherited");
    // As make's jobserver does: a pipe, open in everything that is started.
    let launch = |close: &str, images: &str| {
        let line = format!(r#"exec 9> >(cat > /dev/null); exec "$0" launch -d {images} -- "$@" {close}"#);
        Cmd::sh(&line).arg(ckpt_tests::ckptbpf()).program(&stepper(3))
    };
    let running = sandbox.spawn(launch("", "with"));
    running.wait_for_output("0 ", SOON);
    let refused = sandbox.run(verb("checkpoint", ["with"])).expect_code(125).stderr_text();
    for word in ["descriptor 9 (pipe:", "outside the program", "inherited", "9>&-"] {
        assert!(refused.contains(word), "no {word:?} in {refused}");
    }
    let told = walk(&sandbox, running).success().stderr_text();
    assert_eq!(told.lines().count(), 1, "said once: {told}");
    let events = std::fs::read_to_string(sandbox.dir().join("with/events.jsonl")).unwrap();
    assert!(events.contains(r#""phase":"error""#) && events.contains("descriptor 9"), "{events}");
    // With what the message says, there is nothing to refuse.
    let running = sandbox.spawn(launch("9>&-", "without"));
    running.wait_for_output("0 ", SOON);
    sandbox.run(verb("checkpoint", ["without"])).success();
    walk(&sandbox, running).success();
}

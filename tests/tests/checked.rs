//! `ckptbpf check` says of each feature what a program finds that has no line in common with it.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use ckpt_tests::scenario::{Daemon, Tool, verb};
use ckpt_tests::{Cmd, Sandbox, victim_cmd};

#[test]
fn check_agrees_with_an_independent_probe() {
    let sandbox = Sandbox::new("checked");
    let printed = sandbox.run(verb("check", ["--json"])).stdout_text();
    let report: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let features = report["features"].as_array().expect("a list of features");
    let said: BTreeMap<&str, bool> =
        features.iter().map(|one| (one["name"].as_str().unwrap(), one["status"] == "ok")).collect();
    let found = sandbox.run(victim_cmd("features")).success().stdout_text();
    println!("{found}");
    let mut count = 0;
    for line in found.lines() {
        let (is_ok, name) = line.split_once(' ').expect("two words");
        assert_eq!(
            said.get(name),
            Some(&(is_ok == "ok")),
            "{name}: the probe says {is_ok}, check says\n{printed}"
        );
        count += 1;
    }
    assert!(count > 15, "{count}");
}

/// By which way jobs are checkpointed is that of whoever asks: root's, a daemon's, or a user's alone.
#[test]
fn check_says_by_which_way() {
    let sandbox = Sandbox::new("checked_ways");
    let way = |check: Cmd| {
        let printed = sandbox.run(check).success().stdout_text();
        let report: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        report["way"].as_str().unwrap().to_owned()
    };
    let user = Tool::of_user(&sandbox);
    let asked = || [way(verb("check", ["--json"])), way(user.verb("check", ["--json"]))];
    assert_eq!(asked(), ["privileged", "alone"]);
    let daemon = Daemon::begin(&sandbox, &[]);
    assert_eq!(asked(), ["privileged", "daemon"]);
    daemon.end();
    assert_eq!(asked(), ["privileged", "alone"]);
}

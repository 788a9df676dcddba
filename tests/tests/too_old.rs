//! A kernel that does not tell what a checkpoint needs: it is refused by name, and the program does not notice.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{held, let_go, verb};
use ckpt_tests::skip::skip;
use ckpt_tests::{Expected, Sandbox, assert_same, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_kernel_that_does_not_tell_of_rseq() {
    let sandbox = Sandbox::new("too_old");
    let checked = sandbox.run(verb("check", ["--json"]));
    let report: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let features = report["features"].as_array().expect("a list of features");
    let told = features.iter().find(|one| one["name"] == "ptrace rseq").expect("the feature");
    if told["status"] == "ok" {
        return skip("restartable sequences of which nobody is told", "this kernel tells (Linux 5.13)");
    }
    checked.expect_code(1);
    let said = sandbox.run(verb("check", [""; 0])).expect_code(1).stdout_text();
    assert!(said.contains("ptrace rseq") && said.contains("5.13"), "{said}");
    let program = victim_cmd("count_static").args(["numbers", "300", "3000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let launch = verb("launch", ["-i", "0.2", "-d", "images", "--"]).program(&held(&sandbox, program));
    let running = sandbox.spawn(launch);
    running.wait_for_output("\n50 ", SOON);
    let asked = sandbox.run(verb("checkpoint", ["images"])).expect_code(125).stderr_text();
    assert!(asked.contains("restartable sequences") && asked.contains("5.13"), "{asked}");
    let_go(&sandbox);
    let ended = running.wait(SOON).success();
    assert!(ended.stderr_text().contains("restartable sequences"), "{}", ended.stderr_text());
    assert_same("standard output", &expected.stdout, &ended.stdout);
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("numbers")).unwrap());
    let left = sandbox.run("ls images | grep ckpt").stdout_text();
    assert_eq!(left, "", "of a refused checkpoint nothing is left");
}

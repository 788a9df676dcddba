//! Exit statuses and refusals of the command line, as docs/cli.md has them.

use std::time::Duration;

use ckpt_tests::scenario::{held, let_go, verb};
use ckpt_tests::{Cmd, Job, Sandbox, ckptbpf, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

/// The status of `ckptbpf launch … -- bash -c LINE`.
fn launch(sandbox: &Sandbox, line: &str) -> i32 {
    let images = sandbox.dir().join(format!("images-{}", line.len()));
    sandbox.run(verb("launch", ["-d"]).arg(images).arg("--").args(["/bin/bash", "-c", line])).code()
}

#[test]
fn the_program_s_own_status_is_passed_on() {
    let sandbox = Sandbox::new("own_status");
    assert_eq!(launch(&sandbox, "exit 0"), 0);
    assert_eq!(launch(&sandbox, "exit 42"), 42);
    assert_eq!(launch(&sandbox, "kill -TERM $$"), 143);
    assert_eq!(launch(&sandbox, "kill -KILL $$ "), 137);
}

#[test]
fn a_program_that_cannot_be_run_is_126_or_127() {
    let sandbox = Sandbox::new("cannot_run");
    let status = |program: &str| sandbox.run(verb("launch", ["--", program])).code();
    assert_eq!(status("./no-such-program"), 127);
    sandbox.run("echo no program > text").success();
    assert_eq!(status("./text"), 126);
}

#[test]
fn our_own_failures_are_125() {
    let sandbox = Sandbox::new("usage");
    for line in [
        &["launch"][..],
        &["launch", "--no-such-option", "--", "true"],
        &["restart", "no-such-folder"],
        &["nonsense"],
    ] {
        let failed = sandbox.run(Cmd::new(ckpt_tests::ckptbpf()).args(line)).expect_code(125);
        assert!(!failed.stderr.is_empty(), "{line:?} fails without a word");
    }
}

#[test]
fn a_folder_with_checkpoints_is_not_launched_into() {
    let sandbox = Sandbox::new("refused");
    let program = victim_cmd("count_static").args(["f", "100000", "1000"]);
    let mut job = Job::launch(&sandbox, &["-i", "0.01", "--exit-after-ckpt"], &program);
    job.wait(SOON).expect_code(85);
    let again = |options: &[&str]| {
        let cmd = verb("launch", ["-d"]).arg(job.dir()).args(options).arg("--").program(&program);
        sandbox.run(cmd)
    };
    let refused = again(&[]).expect_code(125).stderr_text();
    for way_out in ["run", "restart", "--new"] {
        assert!(refused.contains(way_out), "{way_out} is not named: {refused}");
    }
    again(&["--new", "-i", "0.01", "--exit-after-ckpt"]).expect_code(85);
    assert!(job.dir().join("old-1/000001.ckpt").is_file());
}

#[test]
fn checkpoint_kill_ends_the_program_with_85() {
    let sandbox = Sandbox::new("checkpoint_kill");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("count_static").args(["f", "100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    sandbox.run(verb("checkpoint", ["--kill"]).arg(job.dir())).success();
    job.wait(SOON).expect_code(85);
    assert_eq!(job.newest(), 1);
}

/// The directory is free when `checkpoint --kill` returns: a script may go on with it at once.
#[test]
fn checkpoint_kill_and_restart_follow_each_other() {
    let sandbox = Sandbox::new("kill_restart");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("count_static").args(["f", "1000000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    let line = "for i in 1 2 3 4 5 6 7 8; do
        $0 checkpoint --kill images && $0 prune --keep 2 images && $0 restart --detach images > /dev/null || exit
    done; $0 checkpoint --kill images";
    let kept = sandbox.run(Cmd::sh(line).arg(ckptbpf()));
    assert_eq!(kept.code(), 0, "{}", kept.stderr_text());
    job.wait(SOON).expect_code(85);
}

#[test]
fn damage_is_found_and_the_generation_before_is_used() {
    let sandbox = Sandbox::new("damage");
    let program = victim_cmd("count_static").args(["f", "400", "3000"]);
    let expected = ckpt_tests::Expected::of(&sandbox, &program, Some("f"));
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n5 ", SOON);
    job.checkpoint();
    job.running().wait_for_output("\n60 ", SOON);
    let newest = job.checkpoint();
    let image = job.image(newest.id);
    job.kill_all();
    let whole = std::fs::read(&image).unwrap();
    for at in [0, 9, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&image, &damaged).unwrap();
        sandbox.run(verb("verify", [job.image(newest.id)])).expect_code(1);
    }
    for length in [0, 7, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&image, &whole[..length]).unwrap();
        sandbox.run(verb("verify", [job.image(newest.id)])).expect_code(1);
    }
    let at = newest.id.to_string();
    sandbox.run(verb("restart", ["--at", &at]).arg(job.dir())).expect_code(125);
    let_go(&sandbox);
    let restart = || {
        let restarted = sandbox.run(verb("restart", ["-i", "0"]).arg(job.dir())).success();
        assert!(restarted.stderr_text().contains("000002.ckpt"), "no warning: {}", restarted.stderr_text());
        assert!(
            expected.stdout.ends_with(&restarted.stdout),
            "the end of the output is not that of the undisturbed run"
        );
        restarted.stderr_text()
    };
    restart();
    // In a page of the program's memory, and in what describes the program.
    for (at, section) in [(whole.len() / 2, "page block"), (whole.len() - 1000, "")] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&image, &damaged).unwrap();
        let said = restart();
        assert!(said.contains(section) && said.contains("taking checkpoint 1 instead"), "{said}");
    }
}

/// Each of them is full, so nothing of the newest is read for merging.
#[test]
fn a_prune_keeps_what_can_be_restarted_from() {
    let sandbox = Sandbox::new("prune_damaged");
    let program = victim_cmd("count_static").args(["f", "400", "3000"]);
    let mut job = Job::launch(&sandbox, &["--track", "full"], &held(&sandbox, program));
    job.running().wait_for_output("\n5 ", SOON);
    job.checkpoint();
    let newest = job.image(job.checkpoint().id);
    job.kill_all();
    let mut damaged = std::fs::read(&newest).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    std::fs::write(&newest, &damaged).unwrap();
    let pruned = sandbox.run(verb("prune", ["--keep", "1"]).arg(job.dir())).success().stderr_text();
    assert!(pruned.contains("page block"), "{pruned}");
    let_go(&sandbox);
    let restarted = sandbox.run(verb("restart", ["-i", "0"]).arg(job.dir())).success().stderr_text();
    assert!(restarted.contains("taking checkpoint 1 instead"), "{restarted}");
}

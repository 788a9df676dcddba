//! Ends at awkward moments: before the first checkpoint, and in the middle of one.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Holder, stepper, verb};
use ckpt_tests::{Cmd, Job, Mode, Random, Sandbox, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_program_that_ends_before_its_first_checkpoint() {
    let sandbox = Sandbox::new("no_checkpoint");
    let launch = |args: &[&str]| sandbox.run(verb("launch", ["-i", "60", "-d", "images", "--"]).args(args));
    assert_eq!(launch(&["true"]).success().stderr_text(), "");
    let restart = sandbox.run(verb("restart", ["images"])).expect_code(125).stderr_text();
    assert!(restart.contains("no checkpoint") && restart.contains("ckptbpf launch"), "{restart}");
    // A directory without checkpoints may be used again.
    let killed = launch(&["/bin/sh", "-c", "kill -9 $$"]).expect_code(137).stderr_text();
    assert!(killed.contains("before its first checkpoint"), "{killed}");
}

#[test]
fn a_program_that_ends_while_a_checkpoint_is_being_made() {
    let sandbox = Sandbox::with_limit("ends_within", Duration::from_secs(120));
    let mut random = Random::for_test("ends_within");
    for round in 0..20 {
        let images = format!("images{round}");
        let steps = (3 + random.below(20)).to_string();
        let program = victim_cmd("count_static").args(["f", &steps, "1000"]);
        let launch = verb("launch", ["-i", "0.004", "-d", &images, "--"]).program(&program);
        let ended = sandbox.run(launch).success();
        assert_eq!(ended.stdout_text().lines().count().to_string(), steps);
        assert_eq!(ended.stderr_text(), "", "an end is no failure to speak of");
        if sandbox.dir().join(&images).join("000001.ckpt").exists() {
            sandbox.run(verb("verify", [&images])).success();
        }
        let left =
            Cmd::sh("ls -A \"$0\" | grep -v -e ckpt$ -e job.json -e lock -e events.jsonl").arg(&images);
        assert_eq!(sandbox.run(left).stdout_text(), "", "unfinished checkpoints are left");
    }
}

#[test]
fn a_job_that_still_runs_is_not_restarted() {
    let sandbox = Sandbox::new("still_runs");
    let mut job = Job::launch(&sandbox, &[], &stepper(3));
    job.running().wait_for_output("0 ", SOON);
    job.checkpoint();
    for line in [&["restart"][..], &["launch", "--new", "-d"], &["prune"]] {
        let tail: &[&str] = if line[0] == "launch" { &["--", "true"] } else { &[] };
        let cmd = verb(line[0], &line[1..]).arg(job.dir()).args(tail);
        let refused = sandbox.run(cmd).expect_code(125).stderr_text();
        assert!(refused.contains("being written by") && refused.contains("checkpoint --kill"), "{refused}");
    }
    job.walk().success();
    // Ended, it can.
    job.restart(Mode::Eager, &[]);
    job.walk().success();
}

/// Prints the numbers of the signals it gets; the fourth is its end.
const OUTLIVING: &str = r#"
import signal
known = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, known)
print("ready", flush=True)
for _ in range(4):
    print(int(signal.sigwait(known)), flush=True)
"#;

#[test]
fn what_outlives_the_first_process_gets_its_signals_and_its_status_is_kept() {
    let sandbox = Sandbox::new("outlived");
    let program = Cmd::sh("/usr/bin/python3 -c \"$0\" & exit 3").arg(OUTLIVING);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("ready\n", SOON);
    let first = job.program();
    sandbox
        .wait_for("the first process to be gone", SOON, || sandbox.ps().iter().all(|one| one.pid != first));
    // Whoever has the id now is none of the program's: it gets neither a signal nor a freeze.
    let stranger = Holder::of(&sandbox, first);
    job.running().kill(Signal::SIGUSR1);
    job.running().wait_for_output("ready\n10\n", SOON);
    assert_eq!(job.checkpoint().tasks, 1);
    job.running().kill(Signal::SIGUSR2);
    job.running().wait_for_output("ready\n10\n12\n", SOON);
    assert!(sandbox.ps().iter().any(|one| one.pid == first), "the stranger got a signal");
    stranger.end();
    job.kill_all();
    for mode in [Mode::Eager, Mode::Lazy] {
        job.restart(mode, &[]);
        job.program();
        job.running().kill(Signal::SIGUSR1);
        job.running().wait_for_output("10\n", SOON);
        job.checkpoint();
        job.kill_all();
    }
    job.restart(Mode::Eager, &[]);
    job.program();
    job.running().kill(Signal::SIGTERM);
    job.wait(SOON).expect_code(3);
    assert_eq!(String::from_utf8_lossy(&job.stdout()), "ready\n10\n10\n10\n15\n");
}

//! kill -9 of a daemon's worker under a running job: another one takes its place.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Counting, Daemon, the_worker, workers};
use ckpt_tests::{Cmd, Mode, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Three times. Then the program goes on without, which is said, and a later one takes checkpoints again.
#[test]
fn a_worker_that_is_killed_costs_checkpoints_alone() {
    let sandbox = Sandbox::new("daemon_worker_killed");
    let daemon = Daemon::begin(&sandbox, &[]);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    let program = counting.job.program();
    for times in 1..=3 {
        counting.has_another_worker(&sandbox, the_worker(&sandbox, &daemon), times);
        assert_eq!(counting.job.program(), program);
    }
    sandbox.kill(the_worker(&sandbox, &daemon), Signal::SIGKILL as i32).unwrap();
    let running = counting.job.running();
    let said = format!(
        "the daemon's worker was killed: there are no more checkpoints; for more: ckptbpf attach {program}"
    );
    sandbox.wait_for("word of it", SOON, || running.stderr().contains(&said));
    let attach = Cmd::new(&counting.tool.binary).arg("attach").arg(program.to_string());
    let attach = sandbox.spawn(counting.user.runs_beside(program, &attach));
    counting.job.checkpoint();
    counting.ends_as_expected(&sandbox);
    attach.wait(SOON).success();
    daemon.end();
}

/// What another worker has checkpointed can be restarted from, whichever way the program had begun; the signal that asks and the
/// baseline are those of the job.
#[test]
fn a_worker_that_is_killed_has_another_one_in_its_place() {
    let sandbox = Sandbox::with_limit("daemon_worker_again", Duration::from_secs(170));
    let daemon = Daemon::begin(&sandbox, &[]);
    let options = ["--ckpt-signal", "USR2", "--cpu-baseline", "x86-64"];
    let mut counting = Counting::begin(&sandbox, &daemon, &options);
    for mode in [Mode::Lazy, Mode::Eager] {
        counting.has_another_worker(&sandbox, the_worker(&sandbox, &daemon), 1);
        let before = counting.job.newest();
        counting.job.running().kill(Signal::SIGUSR2);
        counting.job.wait_for_checkpoint(before + 1);
        let image = counting.job.image(before + 1);
        let shown = sandbox.run(counting.tool.verb("inspect", ["--json"]).arg(image)).success().stdout_text();
        assert!(shown.contains("\"x86-64\""), "{shown}");
        counting.job.kill_all();
        counting.job.restart(mode, &[]);
        counting.job.program();
        let is_guarded = || sandbox.ps().iter().any(|one| one.comm == "page-guardian");
        sandbox.wait_for("all pages to be there", SOON, || !is_guarded());
        // While it is taken, the worker has said that there may be another one.
        counting.job.checkpoint();
    }
    counting.has_another_worker(&sandbox, the_worker(&sandbox, &daemon), 1);
    counting.job.checkpoint_and_end();
    counting.job.restart(Mode::Eager, &[]);
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// One whose daemon was killed, too, is asked of the next daemon; where none comes, the program goes on without.
#[test]
fn another_worker_is_one_of_the_next_daemon() {
    let sandbox = Sandbox::new("daemon_worker_of_next");
    let daemon = Daemon::begin(&sandbox, &[]);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    let both_killed = |daemon: Daemon<'_>| {
        let worker = the_worker(&sandbox, &daemon);
        daemon.kill();
        sandbox.kill(worker, Signal::SIGKILL as i32).unwrap();
    };
    both_killed(daemon);
    let running = counting.job.running();
    sandbox.wait_for("word of it", SOON, || running.stderr().contains("another one takes its place"));
    let daemon = Daemon::begin(&sandbox, &[]);
    assert_eq!(counting.job.checkpoint().kind, "full", "{}", running.stderr());
    assert_eq!(workers(&sandbox, &daemon).len(), 1, "{}", daemon.log());
    both_killed(daemon);
    let is_said = || running.stderr().contains("there are no more checkpoints; for more: ckptbpf attach");
    sandbox.wait_for("word of it", SOON, is_said);
    counting.ends_as_expected(&sandbox);
    // It takes away what they have left.
    Daemon::begin(&sandbox, &[]).end();
}

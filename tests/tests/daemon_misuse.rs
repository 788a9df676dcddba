//! What users do with what is theirs of a daemon: their own workers, and the processes that are made for them.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool};
use ckpt_tests::{Cmd, Job, Sandbox, User, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A user's job that counts, with a daemon's worker.
struct Counting<'b> {
    job: Job<'b>,
    user: User,
    program: i32,
    worker: i32,
}

impl<'b> Counting<'b> {
    fn begin(sandbox: &'b Sandbox, daemon: &Daemon<'b>) -> Self {
        let tool = daemon.serves(Tool::of_user(sandbox));
        let user = tool.user.clone().unwrap();
        let program = user.reaches(&victim_cmd("count_static").args(["numbers", "1000000", "2000"]));
        let job = Job::launch_by(sandbox, tool, user.home().join("images"), &[], &program);
        job.running().wait_for_output("\n50 ", SOON);
        job.checkpoint();
        let (program, worker) = (job.program(), worker(sandbox, daemon).expect("a worker"));
        Self { job, user, program, worker }
    }
}

/// The one worker of a daemon, if there is one.
fn worker(sandbox: &Sandbox, daemon: &Daemon<'_>) -> Option<i32> {
    sandbox.ps().iter().find(|one| one.parent == daemon.pid()).map(|one| one.pid)
}

/// It is outside of the job's limits, and so is what it holds.
#[test]
fn a_worker_that_is_stopped_ends_with_its_front() {
    let sandbox = Sandbox::new("misuse_stopped");
    let daemon = Daemon::begin(&sandbox, &[]);
    let Counting { mut job, user, program, worker: stopped } = Counting::begin(&sandbox, &daemon);
    sandbox.run(user.runs(&Cmd::sh(&format!("kill -STOP {stopped}")))).success();
    let state = || sandbox.ps().into_iter().find(|one| one.pid == stopped).map(|one| one.state);
    sandbox.wait_for("the worker to stand", SOON, || state() == Some('T'));
    job.lose_supervisor();
    sandbox.wait_for("the worker to be gone", SOON, || worker(&sandbox, &daemon).is_none());
    // The program is none the worse for it.
    assert!(sandbox.ps().iter().any(|one| one.pid == program));
    sandbox.kill(program, Signal::SIGKILL as i32).unwrap();
    let log = daemon.end().stderr_text();
    assert!(log.contains("has not ended with its front, and is ended"), "{log}");
}

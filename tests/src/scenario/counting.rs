//! A user's job that counts, and whose checkpoints a daemon's worker takes.

use std::time::Duration;

use super::{Daemon, Expected, Job, Tool, held, let_go};
use crate::compare::assert_same;
use crate::sandbox::Sandbox;
use crate::user::User;
use crate::victim::victim_cmd;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A user's counting job with a daemon's worker, and those who have to do with it.
pub struct Counting<'b> {
    pub job: Job<'b>,
    pub user: User,
    pub tool: Tool,
    expected: Expected,
}

impl<'b> Counting<'b> {
    /// Launches it, and takes its first checkpoint.
    pub fn begin(sandbox: &'b Sandbox, daemon: &Daemon<'b>, options: &[&str]) -> Self {
        let tool = daemon.serves(Tool::of_user(sandbox));
        let user = tool.user.clone().unwrap();
        let program = victim_cmd("count_static").args(["numbers", "3000", "2000"]);
        let expected = Expected::of(sandbox, &program, Some("numbers"));
        let program = user.reaches(&held(sandbox, program));
        let job = Job::launch_by(sandbox, tool.clone(), user.home().join("images"), options, &program);
        job.running().wait_for_output("\n50 ", SOON);
        job.checkpoint();
        Self { job, user, tool, expected }
    }

    /// As the function of that name.
    pub fn has_another_worker(&self, sandbox: &Sandbox, struck: i32, times: usize) {
        has_another_worker(sandbox, &self.job, struck, times);
    }

    /// The program goes on to its end, and has done what it does undisturbed.
    pub fn ends_as_expected(mut self, sandbox: &Sandbox) {
        let_go(sandbox);
        self.job.wait(SOON).success();
        assert_same("standard output", &self.expected.stdout, &self.job.stdout());
        let file = std::fs::read(self.user.home().join("numbers")).unwrap();
        assert_same("the file", &self.expected.file, &file);
    }
}

/// kill -9 of a job's worker, or of what works for it inside: another one takes its place, and its first checkpoint is full.
pub fn has_another_worker(sandbox: &Sandbox, job: &Job<'_>, struck: i32, times: usize) {
    sandbox.kill(struck, Signal::SIGKILL as i32).unwrap();
    let running = job.running();
    let said = "the daemon's worker was killed: another one takes its place, and the next checkpoint is full";
    sandbox.wait_for("word of it", SOON, || running.stderr().matches(said).count() == times);
    assert_eq!(job.checkpoint().kind, "full", "{}", running.stderr());
    assert_eq!(job.checkpoint().kind, "delta", "{}", running.stderr());
}

/// Those that are there now.
pub fn workers(sandbox: &Sandbox, daemon: &Daemon<'_>) -> Vec<i32> {
    let all = sandbox.ps();
    all.iter().filter(|one| one.parent == daemon.pid()).map(|one| one.pid).collect()
}

/// The only one.
pub fn the_worker(sandbox: &Sandbox, daemon: &Daemon<'_>) -> i32 {
    let found = workers(sandbox, daemon);
    assert_eq!(found.len(), 1, "{found:?}: {}", daemon.log());
    found[0]
}

//! The daemon, in a box, and a user whom it serves.

use std::time::Duration;

use super::{Tool, verb};
use crate::sandbox::{Cmd, Finished, Running, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A daemon that root has started, at the place where everybody looks for it.
pub struct Daemon<'b> {
    sandbox: &'b Sandbox,
    running: Running<'b>,
}

impl<'b> Daemon<'b> {
    /// Starts it, and returns once it answers.
    pub fn begin(sandbox: &'b Sandbox, options: &[&str]) -> Self {
        Self::begin_after(sandbox, ":", options)
    }

    /// The same by a shell that has done `first`.
    pub fn begin_after(sandbox: &'b Sandbox, first: &str, options: &[&str]) -> Self {
        let shell = Cmd::sh(&format!("{first}; exec \"$@\"")).arg("bash");
        let running = sandbox.spawn(shell.program(&verb("daemon", ["-vv"]).args(options)));
        let daemon = Self { sandbox, running };
        sandbox.wait_for("the daemon to answer", SOON, || {
            assert!(!daemon.running.has_ended(), "it has ended: {}", daemon.log());
            daemon.check().code() == 0
        });
        daemon
    }

    /// `ckptbpf daemon --check`, as root.
    pub fn check(&self) -> Finished {
        self.sandbox.run(verb("daemon", ["--check"]))
    }

    /// Its process id, inside the box.
    pub fn pid(&self) -> i32 {
        self.running.pid
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    /// The same with what a user of the box has.
    pub fn serves(&self, tool: Tool) -> Tool {
        Tool { spared: Some(self.pid()), ..tool }
    }

    /// Ends it as an administrator does.
    pub fn end(self) -> Finished {
        self.running.kill(Signal::SIGTERM);
        self.running.wait(SOON).success()
    }

    /// kill -9.
    pub fn kill(self) {
        self.running.kill(Signal::SIGKILL);
        self.running.wait(SOON).expect_code(137);
    }
}

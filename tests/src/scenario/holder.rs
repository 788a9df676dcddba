//! Somebody who has a process id that a restart wants.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sandbox::{Cmd, Running, Sandbox};

const PATIENCE: Duration = Duration::from_secs(30);

/// Two processes: one called `sleep`, which has the id, and its parent, which waits for it.
pub struct Holder<'b>(Running<'b>);

impl<'b> Holder<'b> {
    /// Takes `id`, which is free: the next process of the box gets it, as nothing else is started meanwhile.
    pub fn of(sandbox: &'b Sandbox, id: i32) -> Self {
        let line = "echo $(($0 - 1)) > /proc/sys/kernel/ns_last_pid; sleep 1000 & wait";
        let running = sandbox.spawn(Cmd::sh(line).arg(id.to_string()));
        let has = || sandbox.ps().iter().any(|one| one.pid == id && one.comm == "sleep");
        sandbox.wait_for("the id to be taken", PATIENCE, has);
        Self(running)
    }

    /// Gives it back; fine too when it was killed before.
    pub fn end(self) {
        self.0.kill_group(Signal::SIGKILL);
        self.0.wait(PATIENCE);
    }
}

//! A box in which users can have no namespaces of their own.

use crate::sandbox::{Cmd, Sandbox};
use crate::user::User;

/// A part of /proc is covered, as in containers: then nobody but root mounts another one (`mount_too_revealing` of fs/namespace.c),
/// and a pid namespace is of no use without.
pub struct Covered<'b>(&'b Sandbox);

impl<'b> Covered<'b> {
    /// Before any job is launched: process ids of the box go on where those of a machine that has been up for a while do.
    pub fn of(sandbox: &'b Sandbox) -> Self {
        sandbox.run("mount -t tmpfs none /proc/tty && echo 1000 > /proc/sys/kernel/ns_last_pid").success();
        let new = ["--user", "--map-current-user", "--pid", "--fork", "--mount-proc", "true"];
        let tried = sandbox.run(User::of(sandbox).runs(&Cmd::new("unshare").args(new)));
        assert!(tried.code() != 0 && tried.stderr_text().contains("/proc"), "{}", tried.stderr_text());
        Self(sandbox)
    }

    /// What is covered is there again.
    pub fn end(self) {
        self.0.run("umount /proc/tty").success();
    }
}

//! Somebody else's job beside what a user does to the daemon.

use std::path::PathBuf;
use std::time::Duration;

use super::{Counting, Daemon, Tool};

use crate::sandbox::Sandbox;

const SOON: Duration = Duration::from_secs(30);

/// How many descriptors it has.
pub fn open_files(sandbox: &Sandbox, pid: i32) -> usize {
    let folder = sandbox.see(&PathBuf::from(format!("/proc/{pid}/fd")));
    std::fs::read_dir(folder).unwrap().count()
}

/// Somebody else's job beside the attack, which goes on as if nothing were. The attack is that of a user who has nothing in common with
/// the job's.
pub fn beside_a_job(name: &str, options: &[&str], attack: impl FnOnce(&Sandbox, &Daemon<'_>, &Tool)) {
    let sandbox = Sandbox::new(name);
    let daemon = Daemon::begin(&sandbox, options);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    let before = open_files(&sandbox, daemon.pid());
    attack(&sandbox, &daemon, &Tool { user: Some(counting.user.other()), ..counting.tool.clone() });
    sandbox.wait_for("the daemon to have nothing of it left", SOON, || {
        // A connection of before may still have been open.
        open_files(&sandbox, daemon.pid()) <= before
    });
    assert_eq!(counting.job.checkpoint().kind, "delta");
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

//! Somebody else's job beside what a user does to the daemon.

use std::path::PathBuf;
use std::time::Duration;

use super::{Daemon, Expected, Job, Tool, held, let_go};

use crate::sandbox::Sandbox;
use crate::{assert_same, victim_cmd};

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
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("count_static").args(["numbers", "3000", "2000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool.clone(), user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    job.checkpoint();
    let before = open_files(&sandbox, daemon.pid());
    attack(&sandbox, &daemon, &Tool { user: Some(user.other()), ..tool });
    sandbox.wait_for("the daemon to have nothing of it left", SOON, || {
        // A connection of before may still have been open.
        open_files(&sandbox, daemon.pid()) <= before
    });
    assert_eq!(job.checkpoint().kind, "delta");
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("the file", &expected.file, &std::fs::read(user.home().join("numbers")).unwrap());
    daemon.end();
}

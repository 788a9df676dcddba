//! Processes that are closed to others of their user's: checkpoints are refused by name until they are open again.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool};
use ckpt_tests::{Cmd, Job, Sandbox};

const SOON: Duration = Duration::from_secs(30);

/// Closes itself, and is open again once there is a file of that name; as `orphan`, a child that has lost its parent does.
const PROGRAM: &str = "\
import ctypes, os, select, sys
prctl = ctypes.CDLL(None).prctl
PR_SET_DUMPABLE = 4
if sys.argv[1] == 'orphan':
    if os.fork() > 0:
        os.wait()
        while True:
            select.select([], [], [], 1000)
    if os.fork() > 0:
        os._exit(0)
prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
print('closed', flush=True)
while not os.path.exists('open'):
    select.select([], [], [], 0.01)
prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
print('open', flush=True)
while True:
    select.select([], [], [], 1000)
";

fn is_refused_while_it_is_closed(sandbox: &Sandbox, tool: &Tool) {
    let home = tool.user.clone().unwrap().home().to_owned();
    for (kind, tasks) in [("first", 1), ("orphan", 2)] {
        let program = Cmd::new("/usr/bin/python3").args(["-c", PROGRAM, kind]);
        let mut job = Job::launch_by(sandbox, tool.clone(), home.join(kind), &[], &program);
        job.running().wait_for_output("closed", SOON);
        job.program();
        for _ in 0..2 {
            let said = job.try_checkpoint().expect_code(125).stderr_text();
            assert!(said.contains("(python3") && said.contains("is closed to its user's others"), "{said}");
        }
        assert!(job.checkpoints().is_empty());
        std::fs::write(home.join("open"), "").unwrap();
        job.running().wait_for_output("open", SOON);
        assert_eq!(job.checkpoint().tasks, tasks, "{kind}");
        job.kill_all();
        std::fs::remove_file(home.join("open")).unwrap();
    }
}

#[test]
fn who_is_closed_to_its_user_s_others_is_named_alone() {
    let sandbox = Sandbox::new("closed_alone");
    is_refused_while_it_is_closed(&sandbox, &Tool::of_user(&sandbox));
}

#[test]
fn who_is_closed_to_its_user_s_others_is_named_by_daemon() {
    let sandbox = Sandbox::new("closed_by_daemon");
    let daemon = Daemon::begin(&sandbox, &[]);
    is_refused_while_it_is_closed(&sandbox, &daemon.serves(Tool::of_user(&sandbox)));
    daemon.end();
}

//! A child that executes a set-user-id program is not its user's to trace: checkpoints are refused by name until it has ended.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool};
use ckpt_tests::{Cmd, Job, Mode, Sandbox, skip};

const SOON: Duration = Duration::from_secs(30);

/// Has a child once there is a file of that name, waits for it, and goes on.
const PROGRAM: &str = "
import os, select, subprocess, sys
step = 0
def count():
    global step
    step += 1
    print(step, flush=True)
    select.select([], [], [], 0.01)
while not os.path.exists('go'):
    count()
child = subprocess.Popen([sys.argv[1], 'gate'], stdout=subprocess.DEVNULL)
while child.poll() is None:
    count()
print('over', flush=True)
while True:
    count()
";

fn is_refused_until_it_has_ended(sandbox: &Sandbox, tool: &Tool, name: &str) {
    let home = tool.user.clone().unwrap().home().to_owned();
    let gate = home.join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let as_root = sandbox.dir().join("as-root");
    std::fs::copy("/bin/cat", &as_root).unwrap();
    std::fs::set_permissions(&as_root, PermissionsExt::from_mode(0o4755)).unwrap();
    let program = Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]).arg(&as_root);
    let mut job = Job::launch_by(sandbox, tool.clone(), home.join("images"), &[], &program);
    job.running().wait_for_output("\n20\n", SOON);
    let first = job.checkpoint().id;
    std::fs::write(home.join("go"), "").unwrap();
    // Then it waits at the gate.
    let child = || sandbox.ps().into_iter().find(|one| one.comm == "as-root" && one.state == 'S');
    sandbox.wait_for("the child", SOON, || child().is_some());
    let status = sandbox.see(&PathBuf::from(format!("/proc/{}/status", child().unwrap().pid)));
    let is_root = std::fs::read_to_string(status).unwrap().contains("\nUid:\t4242\t0\t0\t0\n");
    if is_root {
        for _ in 0..2 {
            let said = job.try_checkpoint().expect_code(125).stderr_text();
            assert!(said.contains("as-root"), "{said}");
        }
        assert_eq!(job.newest(), first, "what cannot be saved has no checkpoint");
    } else {
        skip::skip_part(name, "set-user-id programs are none where the boxes are (nosuid)");
    }
    // It reads until nobody writes any more. The program has gone on meanwhile, and is saved again.
    std::fs::write(&gate, "word\n").unwrap();
    job.running().wait_for_output("over\n", SOON);
    let taken = job.checkpoint();
    assert_eq!((taken.id, taken.tasks), (first + 1, 1));
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    job.program();
    job.checkpoint();
    job.kill_all();
    let printed = String::from_utf8(job.stdout()).unwrap();
    let steps: Vec<u32> = printed.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(steps.iter().zip(1..).all(|(step, expected)| *step == expected), "{printed}");
}

#[test]
fn a_set_user_id_child_is_named_until_it_has_ended_alone() {
    let sandbox = Sandbox::new("set_user_id_alone");
    is_refused_until_it_has_ended(&sandbox, &Tool::of_user(&sandbox), "set-user-id child, alone");
}

#[test]
fn a_set_user_id_child_is_named_until_it_has_ended_by_daemon() {
    let sandbox = Sandbox::new("set_user_id_daemon");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    is_refused_until_it_has_ended(&sandbox, &tool, "set-user-id child, by daemon");
    daemon.end();
}

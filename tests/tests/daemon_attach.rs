//! `attach` and `checkpoint PID` by a daemon's worker: a front without a program.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool, held, let_go, the_worker, workers};
use ckpt_tests::{Cmd, Expected, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A program that ckptbpf has not started is checkpointed once, supervised, let go, supervised again, killed and restarted.
#[test]
fn a_running_program_is_supervised_by_a_worker() {
    let sandbox = Sandbox::new("daemon_attach");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("count_static").args(["numbers", "3000", "2000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let bare = sandbox.spawn(user.runs(&user.reaches(&held(&sandbox, program))));
    bare.wait_for_output("\n50 ", SOON);
    let (once, images) = (user.home().join("once"), user.home().join("images"));
    let pid = bare.pid.to_string();
    let ckptbpf = |verb: &str| user.runs_beside(bare.pid, &Cmd::new(&tool.binary).arg(verb));
    let said = sandbox.run(ckptbpf("checkpoint").arg("-d").arg(&once).arg(&pid)).success();
    assert!(said.stdout_text().starts_with("checkpoint 1 (full): "), "{}", said.stdout_text());
    assert!(said.stderr_text().contains("nobody supervises"), "{}", said.stderr_text());
    assert_eq!(daemon.log().matches(" for process ").count(), 1, "{}", daemon.log());
    sandbox.wait_for("that worker to be gone", SOON, || workers(&sandbox, &daemon).is_empty());
    let checkpoint = |target: &str| sandbox.run(tool.verb("checkpoint", [target]));
    let attach = || {
        let attach = sandbox.spawn(ckptbpf("attach").arg("-d").arg(&images).arg(&pid));
        let status = || sandbox.run(tool.verb("status", ["--json"]).arg(&images)).stdout_text();
        sandbox.wait_for("a supervisor", SOON, || {
            assert!(!attach.has_ended(), "{}", attach.stderr());
            status().contains("\"supervised\":true")
        });
        attach
    };
    // It ends with a signal, and the program goes on.
    let first = attach();
    the_worker(&sandbox, &daemon);
    checkpoint(images.to_str().unwrap()).success();
    checkpoint(&first.pid.to_string()).success();
    first.kill(Signal::SIGTERM);
    first.wait(SOON).expect_code(143);
    sandbox.wait_for("its worker to be gone", SOON, || workers(&sandbox, &daemon).is_empty());
    // Without its worker, too.
    let second = attach();
    checkpoint(images.to_str().unwrap()).success();
    sandbox.kill(the_worker(&sandbox, &daemon), Signal::SIGKILL as i32).unwrap();
    let said = second.wait(SOON).expect_code(125).stderr_text();
    assert!(
        said.contains(&format!("there are no more checkpoints; for more: ckptbpf attach {pid}")),
        "{said}"
    );
    // A worker goes with whoever has asked for it.
    let third = attach();
    third.kill(Signal::SIGKILL);
    third.wait(SOON).expect_code(137);
    sandbox.wait_for("its worker to be gone", SOON, || workers(&sandbox, &daemon).is_empty());
    assert!(!bare.has_ended());
    let last = attach();
    checkpoint(images.to_str().unwrap()).success();
    bare.kill(Signal::SIGKILL);
    bare.wait(SOON).expect_code(137);
    last.wait(SOON);
    let again = sandbox.spawn(tool.verb("restart", [&images]));
    let_go(&sandbox);
    again.wait(SOON).success();
    let file = std::fs::read(user.home().join("numbers")).unwrap();
    assert_same("the file", &expected.file, &file);
    daemon.end();
}

/// What its user's own process may not trace, no worker does: somebody else's, and what is closed to others.
#[test]
fn what_a_front_may_not_trace_its_worker_does_not_trace() {
    let sandbox = Sandbox::new("daemon_attach_others");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let line = "import ctypes, select\nctypes.CDLL(None).prctl(4, 0)\nprint('closed', flush=True)\nselect.select([], [], [])\n";
    let closed = sandbox.spawn(user.runs(&Cmd::new("/usr/bin/python3").args(["-c", line])));
    closed.wait_for_output("closed", SOON);
    for pid in [daemon.pid(), closed.pid] {
        for verb in ["attach", "checkpoint"] {
            let asked = tool.verb(verb, ["-d", "images", &pid.to_string()]);
            let said = sandbox.run(asked).expect_code(125).stderr_text();
            assert!(said.contains(&format!("process {pid} is none that you may trace")), "{said}");
        }
    }
    assert!(!user.home().join("images").exists(), "nothing was begun");
    assert!(daemon.log().matches(" for process ").count() >= 4, "{}", daemon.log());
    closed.kill(Signal::SIGKILL);
    closed.wait(SOON).expect_code(137);
    daemon.end();
}

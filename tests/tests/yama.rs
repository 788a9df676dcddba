//! Where Yama lets fewer processes trace another than its user has: who does it then, and what is refused.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Counting, Daemon, Survival, Tool, held, let_go, survive, the_worker, verb};
use ckpt_tests::yama::Scope;
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, skip, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// The scope, where it can be set.
fn set(test: &str, value: u8) -> Option<Scope> {
    Scope::set(value).map_err(|why| skip::skip(test, why)).ok()
}

/// A shell has new children in each step: no worker may trace one before it has let it.
#[test]
fn ever_new_children_by_daemon_where_ancestors_alone_trace() {
    let Some(_scope) = set("ever_new_children_by_daemon_where_ancestors_alone_trace", 1) else { return };
    let program = victim_cmd("count.ash").args(["f", "300", "0.003"]);
    let of = Survival::of("yama_children", program).writing("f");
    survive(&Survival { by_user: true, by_daemon: true, ..of });
}

/// It is the worker that is let, whatever becomes of the daemon, and nobody else.
#[test]
fn the_worker_alone_is_let_and_outlives_the_daemon() {
    let Some(_scope) = set("the_worker_alone_is_let_and_outlives_the_daemon", 1) else { return };
    let sandbox = Sandbox::new("yama_worker");
    let daemon = Daemon::begin(&sandbox, &[]);
    let told = daemon.check().success().stdout_text();
    assert!(told.contains("kernel.yama.ptrace_scope=1: each process of a job names its worker"), "{told}");
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    let (user, tool) = (&counting.user, &counting.tool);
    // Another of the user's processes, and one that no ckptbpf has started.
    let (program, other) = (counting.job.program(), sandbox.spawn(user.runs(&Cmd::new("sleep").arg("1000"))));
    let is_there = || sandbox.ps().iter().any(|one| one.pid == other.pid && one.comm == "sleep");
    sandbox.wait_for("the other program", SOON, is_there);
    let look = user.runs(&Cmd::sh(&format!("cat /proc/{program}/syscall")));
    assert!(sandbox.run(look).stderr_text().contains("not permitted"));
    for what in ["attach", "checkpoint"] {
        let asked = tool.verb(what, ["-d", "beside"]).arg(other.pid.to_string());
        let said = sandbox.run(asked).expect_code(125).stderr_text();
        assert!(said.contains(&format!("cannot trace process {} (sleep)", other.pid)), "{said}");
        assert!(said.contains("kernel.yama.ptrace_scope=1 lets a process be traced by"), "{said}");
        assert!(said.contains("sysctl kernel.yama.ptrace_scope=0"), "{said}");
    }
    assert!(!user.home().join("beside").exists());
    other.kill(Signal::SIGKILL);
    other.wait(SOON);
    daemon.kill();
    counting.job.checkpoint();
    counting.ends_as_expected(&sandbox);
    // What the one that was killed has left goes with its successor.
    Daemon::begin(&sandbox, &[]).end();
}

/// One in the place of a worker that was killed is another process, and let anew.
#[test]
fn another_worker_is_let_in_its_place() {
    let Some(_scope) = set("another_worker_is_let_in_its_place", 1) else { return };
    let sandbox = Sandbox::new("yama_again");
    let daemon = Daemon::begin(&sandbox, &[]);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    for times in 1..=2 {
        counting.has_another_worker(&sandbox, the_worker(&sandbox, &daemon), times);
    }
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// What has lost its parent comes from ckptbpf from then on, with a daemon and alone.
#[test]
fn orphans_where_ancestors_alone_trace() {
    let Some(_scope) = set("orphans_where_ancestors_alone_trace", 1) else { return };
    let sandbox = Sandbox::new("yama_orphans");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let home = tool.user.clone().unwrap().home().to_owned();
    let alone = Tool { environment: vec![("CKPTBPF_SOCKET".into(), String::new())], ..tool.clone() };
    for (name, tool) in [("served", tool), ("alone", alone)] {
        let program = Cmd::sh("(sleep 1000 &); echo ready; exec sleep 1000");
        let mut job = Job::launch_by(&sandbox, tool, home.join(name), &[], &program);
        job.running().wait_for_output("ready", SOON);
        assert_eq!(job.checkpoint().tasks, 2, "{name}");
        job.checkpoint_and_end();
        job.restart(Mode::Eager, &[]);
        assert_eq!(job.checkpoint().tasks, 2, "{name}");
        let said = job.running().stderr();
        assert!(!said.contains("done without"), "{name}: {said}");
        job.kill_all();
    }
    // Those of the launch and of the restart.
    sandbox.wait_for("two workers to be over", SOON, || daemon.log().matches("worker over").count() == 2);
    daemon.end();
}

/// A ckptbpf that is stopped lets nobody trace what is new: that costs the checkpoint, which says so.
#[test]
fn a_front_that_is_stopped_costs_the_checkpoints_of_what_is_new() {
    let Some(_scope) = set("a_front_that_is_stopped_costs_the_checkpoints_of_what_is_new", 1) else { return };
    let sandbox = Sandbox::new("yama_stopped");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = Cmd::sh(
        "exec 8<> <(:); echo ready; while [[ ! -e go ]]; do read -r -t 0.01 -u 8; done; sleep 1000 & echo child; wait",
    );
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("ready", SOON);
    job.checkpoint();
    job.running().kill(Signal::SIGSTOP);
    // What is let stays so.
    job.try_checkpoint().success();
    std::fs::write(user.home().join("go"), "").unwrap();
    job.running().wait_for_output("child", SOON);
    let said = job.try_checkpoint().expect_code(125).stderr_text();
    assert!(said.contains("(kernel.yama.ptrace_scope=1), does not answer"), "{said}");
    job.running().kill(Signal::SIGCONT);
    assert_eq!(job.checkpoint().tasks, 2);
    job.kill_all();
    daemon.end();
}

/// What could not be checkpointed is not started; what is restarted is in a namespace, where its ckptbpf has all rights.
#[test]
fn who_may_not_trace_is_told_before_anything_is_started() {
    const SHOWN: &str = "echo 3 > three; mount --bind three /proc/sys/kernel/yama/ptrace_scope; exec \"$@\"";
    let Some(scope) = set("who_may_not_trace_is_told_before_anything_is_started", 0) else { return };
    let sandbox = Sandbox::new("yama_strict");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("count_static").args(["numbers", "3000", "2000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool.clone(), user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    job.checkpoint_and_end();
    scope.change(2);
    let alone = Tool { environment: vec![("CKPTBPF_SOCKET".into(), String::new())], ..tool.clone() };
    for tool in [&tool, &alone] {
        let launch = tool.verb("launch", ["-d", "none", "--", "touch", "started"]);
        let said = sandbox.run(launch).expect_code(125).stderr_text();
        assert!(said.contains("no checkpoint could be taken of the program"), "{said}");
        assert!(said.contains("kernel.yama.ptrace_scope=2 lets nobody trace"), "{said}");
        assert!(said.contains("sysctl kernel.yama.ptrace_scope=1"), "{said}");
    }
    for name in ["started", "none"] {
        assert!(!user.home().join(name).exists(), "{name}");
    }
    let checked = sandbox.run(tool.verb("check", ["--json"])).expect_code(1).stdout_text();
    assert!(checked.contains("kernel.yama.ptrace_scope=2 lets nobody trace"), "{checked}");
    sandbox.run(verb("launch", ["-d", "root", "--", "/bin/true"])).success();
    job.restart(Mode::Eager, &[]);
    job.checkpoint();
    let said = job.running().stderr();
    assert!(said.contains("is done without: ") && said.contains("kernel.yama.ptrace_scope?"), "{said}");
    // That is for good, so it is only shown.
    let shown =
        |command: &Cmd| Cmd::new("unshare").args(["-m", "/bin/bash", "-c", SHOWN, "bash"]).program(command);
    for (command, told) in [
        (
            verb("launch", ["-d", "none", "--", "touch", "started"]),
            "no checkpoint could be taken of the program",
        ),
        (verb("restart", [job.dir()]), "nothing can be restarted"),
    ] {
        let said = sandbox.run(shown(&command)).expect_code(125).stderr_text();
        assert!(
            said.contains(told) && said.contains("kernel.yama.ptrace_scope=3 lets nobody trace"),
            "{said}"
        );
    }
    assert!(!sandbox.dir().join("started").exists());
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    assert_same("the file", &expected.file, &std::fs::read(user.home().join("numbers")).unwrap());
    daemon.end();
}

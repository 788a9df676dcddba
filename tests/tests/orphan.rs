//! kill -9 of ckptbpf alone: the program goes on as if nothing had been, and can be supervised again.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{fills_done, stepper, verb, walk_through};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, ckptbpf, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_program_without_ckptbpf_goes_on_and_is_attached_again() {
    let sandbox = Sandbox::new("orphan");
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &stepper(6));
    job.running().wait_for_output("0 ", SOON);
    job.wait_for_checkpoint(1);
    let pid = job.kill_supervisor();
    sandbox.kill(pid, Signal::SIGUSR1 as i32).unwrap();
    sandbox.wait_for("the orphan to go on", SOON, || job.stdout().starts_with(b"0 ") && lines(&job) == 2);
    // Restarting it would make two of it.
    let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
    assert!(refused.contains("still runs") && refused.contains("ckptbpf attach"), "{refused}");
    // The directory is known from the supervisor that was killed; its interval holds on.
    job.attach(pid, &[]);
    let newest = job.newest();
    job.wait_for_checkpoint(newest + 2);
    job.signal(Signal::SIGUSR1);
    sandbox.wait_for("the second step", SOON, || lines(&job) == 3);
    let taken = job.checkpoint();
    assert!(taken.id > newest, "{taken:?}");
    job.kill_all();
    job.restart(Mode::Eager, &["-i", "0"]);
    job.walk().success();
    whole_run(&sandbox, &job.stdout());
}

/// The first two numbers of the release.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Its parent is another process by then, which waits for it: the kernel tells how it ended, from Linux 6.15 on.
#[test]
fn an_attached_ckptbpf_ends_as_the_program_does() {
    let sandbox = Sandbox::new("orphan_status");
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    for (signal, status) in [(Signal::SIGUSR1, 7), (Signal::SIGKILL, 137)] {
        let dir = sandbox.dir().join(format!("images{status}"));
        let program = Cmd::sh("trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done");
        let mut job = Job::launch_in(&sandbox, dir, &[], &program);
        job.running().wait_for_output("ready", SOON);
        let pid = job.kill_supervisor();
        job.attach(pid, &[]);
        job.checkpoint();
        sandbox.kill(pid, signal as i32).unwrap();
        let ended = job.wait(SOON);
        if kernel() < (6, 15) {
            let said = ended.expect_code(0).stderr_text();
            assert!(said.contains("known to its parent alone"), "{said}");
        } else {
            ended.expect_code(status);
        }
    }
}

/// Who is left of it is known by the checkpoint, though job.json speaks of the first process alone.
#[test]
fn what_is_left_of_a_job_is_in_the_way_of_its_restart() {
    let sandbox = Sandbox::new("survivor");
    let child = "for i in 1 2 3; do echo $i; read line; done";
    let mut job =
        Job::launch(&sandbox, &[], &Cmd::sh(&format!("mkfifo f; sh -c '{child}' <>f & echo 0; wait")));
    job.running().wait_for_output("1\n", SOON);
    job.checkpoint();
    let first = job.kill_supervisor();
    sandbox.kill(first, Signal::SIGKILL as i32).unwrap();
    sandbox.wait_for("its end", SOON, || sandbox.ps().iter().all(|one| one.pid != first));
    let left = sandbox.ps().into_iter().find(|one| one.comm == "sh").expect("the child").pid;
    let stdout = job.stdout();
    // A page of it is damaged: nothing of its memory is read for a restart that is refused.
    let whole = std::fs::read(job.image(1)).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x10;
    std::fs::write(job.image(1), &damaged).unwrap();
    for mode in [Mode::Eager, Mode::Lazy] {
        let restart = verb("restart", if mode == Mode::Lazy { &["--lazy"][..] } else { &[] });
        let refused = sandbox.run(restart.arg(job.dir())).expect_code(125).stderr_text();
        assert!(refused.contains(&format!("process {left} (sh) of this checkpoint still runs")), "{refused}");
    }
    std::fs::write(job.image(1), &whole).unwrap();
    assert!(sandbox.ps().iter().any(|one| one.pid == left), "a refused restart has ended it");
    assert_eq!(job.stdout(), stdout);
    sandbox.kill(left, Signal::SIGKILL as i32).unwrap();
    // The same right after a restart: no checkpoint knows of what that has made.
    for mode in [Mode::Eager, Mode::Lazy] {
        let before = fills_done(&sandbox, &job);
        job.restart(mode, &[]);
        if mode == Mode::Lazy {
            sandbox.wait_for("all its pages", SOON, || fills_done(&sandbox, &job) > before);
        }
        let first = job.kill_supervisor();
        sandbox.kill(first, Signal::SIGKILL as i32).unwrap();
        sandbox.wait_for("its end", SOON, || sandbox.ps().iter().all(|one| one.pid != first));
        let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
        assert!(refused.contains(&format!("process {left} (sh) of this checkpoint still runs")), "{refused}");
        sandbox.kill(left, Signal::SIGKILL as i32).unwrap();
    }
    job.restart(Mode::Eager, &[]);
    job.program();
    job.kill_all();
}

/// The one after it is full: those before it are kept as any other.
#[test]
fn what_was_before_it_was_attached_is_kept() {
    let sandbox = Sandbox::new("orphan_keep");
    let mut job = Job::launch(&sandbox, &[], &stepper(6));
    let step = |job: &Job, number: usize| {
        let program = sandbox.ps().into_iter().find(|process| process.comm == "memory").unwrap().pid;
        sandbox.kill(program, Signal::SIGUSR1 as i32).unwrap();
        sandbox.wait_for("its next step", SOON, || lines(job) == number + 1);
    };
    job.running().wait_for_output("0 ", SOON);
    for number in 1..=3 {
        step(&job, number);
        job.checkpoint();
    }
    let pid = job.kill_supervisor();
    step(&job, 4);
    job.attach(pid, &[]);
    assert_eq!(job.checkpoint().parent, None);
    job.kill_all();
    sandbox.run(verb("prune", ["--keep", "3"]).arg(job.dir())).success();
    let left: Vec<_> = job.checkpoints().iter().map(|one| (one.id, one.parent, one.complete)).collect();
    assert_eq!(left, [(2, None, true), (3, Some(2), true), (4, None, true)]);
    for (id, mode) in [(4, Mode::Eager), (3, Mode::Lazy), (2, Mode::Eager)] {
        job.restart_at(id, mode, &[]);
        job.walk().success();
        whole_run(&sandbox, &job.stdout());
    }
}

/// Every way in which ckptbpf reaches a program by its id is another one then.
#[test]
fn a_program_without_its_first_thread_is_stopped_left_alone_and_attached_again() {
    let sandbox = Sandbox::new("orphan_leaderless");
    let program = |steps: &str| victim_cmd("leaderless").args(["itself", steps, "2000"]);
    let expected = Expected::of(&sandbox, &program("100"), None).stdout;
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &program("100000"));
    job.wait_for_checkpoint(2);
    let (ckptbpf, pid) = (job.running().pid, job.program());
    let is_stopped = || sandbox.ps().iter().any(|process| process.pid == ckptbpf && process.state == 'T');
    sandbox.kill(pid, Signal::SIGSTOP as i32).unwrap();
    sandbox.wait_for("ckptbpf to stop", SOON, is_stopped);
    sandbox.kill(pid, Signal::SIGCONT as i32).unwrap();
    sandbox.wait_for("ckptbpf to go on", SOON, || !is_stopped());
    assert_eq!(job.kill_supervisor(), pid);
    let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
    assert!(refused.contains("still runs"), "{refused}");
    job.attach(pid, &[]);
    let newest = job.newest();
    job.wait_for_checkpoint(newest + 2);
    job.kill_all();
    job.restart(Mode::Lazy, &["-i", "0"]);
    let restarted = lines(&job);
    sandbox.wait_for("it to go on", SOON, || lines(&job) > restarted + 100);
    let first = |bytes: &[u8]| bytes.split(|&byte| byte == b'\n').take(100).collect::<Vec<_>>().join(&b'\n');
    assert_same("the first lines", &first(&expected), &first(&job.stdout()));
    job.kill_all();
}

/// How many lines the job has printed.
fn lines(job: &Job) -> usize {
    job.stdout().iter().filter(|&&byte| byte == b'\n').count()
}

/// Output and file are those of an undisturbed run of six steps.
fn whole_run(sandbox: &Sandbox, stdout: &[u8]) {
    let bare = victim_cmd("memory").args(["1", "6", "f", "-"]);
    let expected = Expected::of(sandbox, &bare, Some("f"));
    assert_same("standard output", &expected.stdout, stdout);
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("f")).unwrap());
}

#[test]
fn status_clears_what_a_killed_supervisor_left() {
    // The box itself sees to it that nothing of ours is left in /run.
    let sandbox = Sandbox::new("stale");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("count_static").args(["f", "100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    let pid = job.kill_supervisor();
    let shown = sandbox.run(verb("status", ["--json"]).arg(pid.to_string())).success().stdout_text();
    assert!(shown.contains(r#""supervised":false"#), "{shown}");
    sandbox.kill(pid, Signal::SIGKILL as i32).unwrap();
    sandbox.wait_for("the program to be gone", SOON, || sandbox.ps().is_empty());
    assert_eq!(sandbox.run(verb("status", ["--json"])).success().stdout_text().trim(), "[]");
}

#[test]
fn a_pid_that_nobody_supervises_gets_one_full_checkpoint() {
    let sandbox = Sandbox::new("once");
    let bare = sandbox.spawn(stepper(6));
    bare.wait_for_output("0 ", SOON);
    let pid = bare.pid.to_string();
    for id in 1..3 {
        let done = sandbox.run(verb("checkpoint", ["--json", "-d", "images"]).arg(&pid)).success();
        assert!(done.stderr_text().contains("one full checkpoint"), "{}", done.stderr_text());
        let done: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(
            (&done["id"], &done["kind"], &done["killed"]),
            (&id.into(), &"full".into(), &false.into())
        );
    }
    let refused = sandbox.run(verb("restart", ["images"])).expect_code(125).stderr_text();
    assert!(refused.contains("still runs") && refused.contains("ckptbpf attach"), "{refused}");
    sandbox.run(verb("checkpoint", ["--kill", "-d", "images", &pid])).success();
    let first = bare.wait(SOON).expect_code(137).stdout;
    let rest = walk_through(&sandbox, verb("restart", ["images"])).success().stdout;
    // Checkpoint and end were one instant: nothing needs a cut.
    whole_run(&sandbox, &[first, rest].concat());
}

#[test]
fn an_attached_ckptbpf_that_is_ended_lets_the_program_go_on() {
    let sandbox = Sandbox::new("let_go");
    let bare = sandbox.spawn(victim_cmd("count_static").args(["f", "100000", "1000"]));
    bare.wait_for_output("\n9 ", SOON);
    let pid = bare.pid.to_string();
    for id in 1..3 {
        let attached = sandbox.spawn(verb("attach", ["-d", "images", &pid]));
        sandbox.wait_for("a checkpoint", SOON, || sandbox.run(verb("checkpoint", ["images"])).code() == 0);
        attached.kill(Signal::SIGTERM);
        attached.wait(SOON).expect_code(143);
        assert!(sandbox.dir().join(format!("images/{id:06}.ckpt")).exists());
        let refused = sandbox.run(verb("restart", ["images"])).expect_code(125).stderr_text();
        assert!(refused.contains("still runs"), "{refused}");
    }
    bare.kill(Signal::SIGTERM);
    bare.wait(SOON).expect_code(143);
    sandbox.run(verb("verify", ["images"])).success();
}

/// A program that would have to stop who stops it.
#[test]
fn who_has_started_ckptbpf_is_not_taken_in_by_it() {
    let sandbox = Sandbox::new("above");
    let above = |verb: &str| format!("{} {verb} -d images $$; exit $?", ckptbpf().display());
    for verb in ["attach", "checkpoint"] {
        let refused = sandbox.run(&*above(verb)).expect_code(125).stderr_text();
        assert!(refused.contains("(bash) has started this ckptbpf"), "{refused}");
        assert!(!sandbox.dir().join("images").exists(), "{verb}");
    }
}

//! Several ask at once, or at a moment when nobody can answer: each gets an answer that is right.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use ckpt_tests::calls::{Calls, From, binds, interrupts, seizes};
use ckpt_tests::scenario::{stepper, supervised, verb, walk, walk_through};
use ckpt_tests::{Cmd, Finished, Job, Mode, Running, Sandbox, assert_same};
use nix::libc::SYS_clock_nanosleep;
use nix::sys::stat::Mode as Permissions;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// The number of the checkpoint that `checkpoint --json` tells of.
fn number(finished: &Finished) -> u64 {
    let told: Value = serde_json::from_slice(&finished.stdout).unwrap();
    told["id"].as_u64().unwrap_or_else(|| panic!("no number in {told}"))
}

fn ask<'b>(sandbox: &'b Sandbox, job: &Job, options: &[&str]) -> Running<'b> {
    sandbox.spawn(verb("checkpoint", ["--json"]).args(options).arg(job.dir()))
}

const STEPS: u32 = 4;

fn launch(sandbox: &Sandbox) -> Job<'_> {
    let job = Job::launch(sandbox, &["--keep", "100"], &stepper(STEPS));
    job.running().wait_for_output("0 ", SOON);
    job.program();
    job
}

/// The program's output, undisturbed.
fn expected(sandbox: &Sandbox) -> Vec<u8> {
    let folder = sandbox.dir().join("undisturbed");
    std::fs::create_dir(&folder).unwrap();
    walk_through(sandbox, stepper(STEPS).cwd(&folder)).success().stdout
}

/// All are answered with numbers of checkpoints that are there, and no checkpoint was taken for nobody.
#[test]
fn checkpoints_asked_at_the_same_moment() {
    let sandbox = Sandbox::new("at_once");
    let mut job = launch(&sandbox);
    let asking: Vec<Running> = (0..8).map(|_| ask(&sandbox, &job, &[])).collect();
    let answers: BTreeSet<u64> = asking.into_iter().map(|one| number(&one.wait(SOON).success())).collect();
    let taken = job.checkpoints();
    assert!(taken.iter().all(|one| one.complete), "{taken:?}");
    assert_eq!(answers, taken.iter().map(|one| one.id).collect());
    sandbox.run(verb("verify", [job.dir()])).success();
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    job.walk().success();
    assert_same("standard output", &expected(&sandbox), &job.stdout());
}

/// Asked while another one is under way: the second is one of its own, taken after the first.
#[test]
fn a_checkpoint_asked_while_another_is_taken() {
    let sandbox = Sandbox::new("while_taken");
    let mut job = launch(&sandbox);
    job.checkpoint();
    let (calls, held) = Calls::held_before(job.running().outside_pid().unwrap(), From::Now, interrupts);
    let first = ask(&sandbox, &job, &[]);
    held.wait();
    let second = ask(&sandbox, &job, &[]);
    sandbox.wait_for("the second to wait for its answer", SOON, || {
        let at = sandbox.root().join(format!("proc/{}/syscall", second.pid));
        // recvfrom(2), or read(2) of the socket
        std::fs::read_to_string(at).is_ok_and(|call| call.starts_with("45 ") || call.starts_with("0 "))
    });
    held.let_go();
    assert_eq!(number(&first.wait(SOON).success()), 2);
    assert_eq!(number(&second.wait(SOON).success()), 3);
    job.kill_all();
    assert!(calls.end());
}

/// One of them is also the end: each of the others has a number that is there, or is told that there is none.
#[test]
fn checkpoints_asked_together_with_the_last_one() {
    let sandbox = Sandbox::new("at_once_last");
    let mut job = launch(&sandbox);
    let asking: Vec<Running> =
        (0..6).map(|i| ask(&sandbox, &job, if i == 3 { &["--kill"] } else { &[] })).collect();
    let answers: Vec<Finished> = asking.into_iter().map(|one| one.wait(SOON)).collect();
    job.wait(SOON).expect_code(85);
    let taken: BTreeSet<u64> = job.checkpoints().iter().map(|one| one.id).collect();
    assert_eq!(answers[3].code(), 0, "{}", answers[3].stderr_text());
    assert_eq!(Some(&number(&answers[3])), taken.last());
    for answer in &answers {
        let said = answer.stderr_text();
        match answer.code() {
            0 => assert!(taken.contains(&number(answer)), "{taken:?}: {said}"),
            // Too late: the job was over.
            125 => assert!(said.contains("ckptbpf restart") || said.contains("supervis"), "{said}"),
            other => panic!("{other}: {said}"),
        }
    }
    sandbox.run(verb("verify", [job.dir()])).success();
}

/// The program has said a word, and its supervisor cannot be asked yet: who asks waits for that.
#[test]
fn a_checkpoint_asked_while_the_job_is_being_started() {
    let sandbox = Sandbox::new("once_start");
    let gate = sandbox.dir().join("gate");
    nix::unistd::mkfifo(&gate, Permissions::S_IRWXU).unwrap();
    let line = format!("read < {}; exec \"$@\"", gate.display());
    let launch = verb("launch", ["-d", "images", "--"]).program(&stepper(STEPS));
    let running = sandbox.spawn(Cmd::sh(&line).arg("sh").program(&launch));
    let (calls, held) = Calls::held_before(running.outside_pid().unwrap(), From::Exec, binds);
    std::fs::write(&gate, "\n").unwrap();
    held.wait();
    running.wait_for_output("0 ", SOON);
    let asked = sandbox.spawn(verb("checkpoint", ["images"]));
    let call = format!("/proc/{}/syscall", asked.outside_pid().unwrap());
    sandbox.wait_for("it to sleep", SOON, || {
        assert!(!asked.has_ended(), "{}", asked.stderr());
        std::fs::read_to_string(&call).is_ok_and(|text| text.starts_with(&format!("{SYS_clock_nanosleep} ")))
    });
    held.let_go();
    asked.wait(SOON).success();
    walk(&sandbox, running).success();
    assert!(calls.end());
}

/// While the processes are being made nobody answers: a checkpoint and a second restart are told so, and change nothing.
fn asked_in_a_restart(name: &str, mode: &[&str]) {
    let sandbox = Sandbox::new(name);
    let expected = expected(&sandbox);
    let mut job = launch(&sandbox);
    job.checkpoint();
    let dir = job.dir().to_owned();
    job.kill_all();
    let gate = sandbox.dir().join("gate");
    nix::unistd::mkfifo(&gate, Permissions::S_IRWXU).unwrap();
    let line = format!("read < {}; exec \"$@\"", gate.display());
    let restart = verb("restart", mode).arg(&dir);
    let running = sandbox.spawn(Cmd::sh(&line).arg("sh").program(&restart));
    let (calls, held) = Calls::held_before(running.outside_pid().unwrap(), From::Exec, seizes);
    std::fs::write(&gate, "\n").unwrap();
    held.wait();
    let before = sandbox.run(Cmd::sh("cd \"$0\" && ls && cat job.json").arg(&dir)).success().stdout;
    let refused = sandbox.run(verb("checkpoint", [&dir])).expect_code(125).stderr_text();
    assert!(refused.contains("restart"), "{refused}");
    let refused = sandbox.run(verb("restart", [&dir])).expect_code(125).stderr_text();
    assert!(refused.contains(&format!("pid {}", running.pid)), "{refused}");
    let after = sandbox.run(Cmd::sh("cd \"$0\" && ls && cat job.json").arg(&dir)).success().stdout;
    assert_same("the directory", &before, &after);
    held.let_go();
    sandbox.wait_for("the supervisor", SOON, || {
        assert!(!running.has_ended(), "{}", running.stderr());
        supervised(&sandbox, &dir).is_some()
    });
    sandbox.run(verb("checkpoint", [&dir])).success();
    let rest = walk(&sandbox, running).success().stdout;
    assert!(calls.end());
    assert!(expected.ends_with(&rest) && !rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn a_checkpoint_asked_in_an_eager_restart() {
    asked_in_a_restart("asked_eager", &[]);
}

#[test]
fn a_checkpoint_asked_in_a_lazy_restart() {
    asked_in_a_restart("asked_lazy", &["--lazy"]);
}

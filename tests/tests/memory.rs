//! A delta holds what changed and no more, and each kept generation gives the memory of its moment.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::verb;
use ckpt_tests::{Cmd, Expected, Generation, Job, Mode, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);
const STEPS: usize = 6;

/// `mib` of memory of which each step, on a signal, rewrites 1 %.
fn program(mib: u64, gate: &str) -> Cmd {
    victim_cmd("memory").args([&mib.to_string(), &STEPS.to_string(), "sums", gate])
}

/// Lets the program take one step and waits for its checksum.
fn step(job: &Job, sandbox: &Sandbox, program: i32, number: usize) {
    sandbox.kill(program, Signal::SIGUSR1 as i32).expect("the program lives");
    job.running().wait_for_output(&format!("{number} "), SOON);
}

/// The line of the undisturbed run's output for a step.
fn line(expected: &Expected, step: usize) -> String {
    let text = String::from_utf8_lossy(&expected.stdout).into_owned();
    text.lines().nth(step).expect("a line for each step").to_owned() + "\n"
}

/// Checkpoints after each step but the last: number k holds the memory after step k-1.
fn history(mib: u64) -> Vec<Generation> {
    let sandbox = Sandbox::with_limit(&format!("memory{mib}"), Duration::from_secs(170));
    let expected = Expected::of(&sandbox, &program(mib, "-"), Some("sums"));
    let mut job = Job::launch(&sandbox, &["--keep", "100"], &program(mib, "signal"));
    job.running().wait_for_output("0 ", SOON);
    let pid = job.program();
    let mut taken = vec![job.checkpoint()];
    for number in 1..STEPS {
        step(&job, &sandbox, pid, number);
        taken.push(job.checkpoint());
    }
    assert_same("what it printed", &expected.stdout[..job.stdout().len()], &job.stdout());
    // Every generation gives its own moment: one more step from there has the undisturbed run's checksum.
    job.kill_all();
    for (at, generation) in taken.iter().enumerate() {
        for mode in [Mode::Eager, Mode::Lazy] {
            job.restart_at(generation.id, mode, &["-i", "0"]);
            let pid = job.program();
            step(&job, &sandbox, pid, at + 1);
            let printed = String::from_utf8(job.running().stdout()).unwrap();
            assert_eq!(printed, line(&expected, at + 1), "generation {}, {mode:?}", generation.id);
            job.kill_all();
        }
    }
    sandbox.run(verb("prune", ["--keep", "2"]).arg(job.dir())).success();
    for mode in [Mode::Eager, Mode::Lazy] {
        job.restart(mode, &["-i", "0"]);
        let pid = job.program();
        step(&job, &sandbox, pid, STEPS);
        assert_eq!(
            String::from_utf8(job.running().stdout()).unwrap(),
            line(&expected, STEPS),
            "merged, {mode:?}"
        );
        job.wait(SOON).success();
    }
    sandbox.run(verb("verify", [job.dir()])).success();
    taken
}

#[test]
fn a_delta_of_one_gibibyte_holds_one_percent() {
    let taken = history(1024);
    let all = 1024 << 8;
    assert!(taken[0].kind == "full" && taken[0].pages >= all, "{:?}", taken[0]);
    for delta in &taken[1..] {
        assert_eq!(delta.kind, "delta", "{delta:?}");
        assert!(delta.pages * 1000 <= all * 15, "more than 1.5 % of the pages: {delta:?}");
    }
}

#[test]
fn a_small_history() {
    let taken = history(16);
    assert_eq!(taken.len(), STEPS);
}

#[test]
fn a_lazy_program_whose_pager_is_killed_never_shows_a_wrong_byte() {
    const TIMES: u32 = 20;
    let sandbox = Sandbox::with_limit("pager", Duration::from_secs(170));
    let mut random = ckpt_tests::Random::for_test("pager");
    let long = victim_cmd("memory").args(["64", "60", "sums", "20000"]);
    let expected = Expected::of(&sandbox, &long, None);
    let mut job = Job::launch(&sandbox, &[], &long);
    job.running().wait_for_output("\n3 ", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    for _ in 0..TIMES {
        job.restart_at(from, Mode::Lazy, &["-i", "0"]);
        let pager = job.running().pid;
        ckpt_tests::sandbox::let_pass(random.moment(Duration::from_millis(150)));
        let _ = sandbox.kill(pager, Signal::SIGKILL as i32);
        // Dead, or whole and going on: then it ends by itself.
        sandbox.wait_for("the program to be dead or done", SOON, || sandbox.ps().is_empty());
        let so_far = job.stdout();
        assert_same(
            "what was printed before the end",
            &expected.stdout[..so_far.len().min(expected.stdout.len())],
            &so_far,
        );
        job.wait(SOON);
    }
    job.restart_at(from, Mode::Lazy, &["-i", "0"]);
    job.wait(SOON).success();
    assert_same("the last run", &expected.stdout, &job.stdout());
}

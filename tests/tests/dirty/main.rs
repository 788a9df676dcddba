//! What a program can do to its memory between two checkpoints: each case by itself, from launch to restart.
//!
//! Every test is one row of a table: the program sets memory up, is checkpointed, changes it in one way, is
//! checkpointed, killed, restarted, and then compares every page itself; twice, for a checkpoint of a restarted program
//! is a delta too.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod failed;
mod forced;
mod kernel;
mod private;
mod refused;

use std::time::Duration;

use ckpt_tests::scenario::{MODES, verb};
use ckpt_tests::{Generation, Job, Mode, Sandbox, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Pages that the program itself, its libraries and its stack change between two checkpoints, at most.
const OWN: u64 = 40;

/// A program that runs some rows of the victim `dirty`, each `steps` steps long.
struct Case<'a> {
    rows: &'a [&'a str],
    steps: u64,
    options: &'a [&'a str],
}

/// The checkpoints of a [`Case`]: the full one, one after each step, and one after the first restart.
struct Taken {
    full: Generation,
    steps: Vec<Generation>,
    restarted: Generation,
}

impl Taken {
    /// The checkpoint after the only step.
    fn delta(&self) -> &Generation {
        assert_eq!(self.steps.len(), 1);
        assert_eq!(self.steps[0].kind, "delta", "{:?}", self.steps[0]);
        &self.steps[0]
    }

    /// Of some 512 pages and more, few were stored again: neither in the delta nor after the restart.
    fn assert_clean(&self) {
        let delta = self.delta();
        assert!(self.full.pages >= 512, "{:?}", self.full);
        assert!(delta.pages <= OWN, "clean pages were stored again: {delta:?}");
        self.assert_clean_after_restart();
    }

    fn assert_clean_after_restart(&self) {
        let restarted = &self.restarted;
        assert!(restarted.pages <= OWN, "restored pages are not clean: {restarted:?}");
    }
}

impl<'a> Case<'a> {
    const fn of(row: &'a [&'a str]) -> Self {
        Self { rows: row, steps: 1, options: &[] }
    }

    fn name(&self) -> String {
        format!("dirty-{}", self.rows.join("-").chars().take(30).collect::<String>())
    }

    fn launch<'b>(&self, sandbox: &'b Sandbox) -> Job<'b> {
        let dir = sandbox.dir();
        let steps = self.steps.to_string();
        let program = victim_cmd("dirty").arg(dir).arg(steps).args(self.rows);
        let job = Job::launch(sandbox, &[&["--keep", "100"], self.options].concat(), &program);
        job.running().wait_for_output("ready\n", SOON);
        wait_until_known(sandbox, &job);
        job
    }

    /// From launch to the last restart: twice eagerly, twice lazily.
    fn run(&self) -> Taken {
        let sandbox = Sandbox::new(&self.name());
        let mut job = self.launch(&sandbox);
        let program = job.program();
        let full = job.checkpoint();
        assert_eq!(full.kind, "full", "{full:?}");
        let mut steps = Vec::new();
        for step in 1..=self.steps {
            signal(&sandbox, program);
            job.running().wait_for_output(&format!("done {step}\n"), SOON);
            steps.push(job.checkpoint());
        }
        let mut restarted = Vec::new();
        for (time, mode) in (1..).zip([Mode::Eager, Mode::Eager, Mode::Lazy, Mode::Lazy]) {
            let newest = job.newest();
            job.kill_all();
            restart_at(&sandbox, &mut job, newest, mode, self.options);
            compare(&sandbox, &job, program, time);
            restarted.push(job.checkpoint());
        }
        job.kill_all();
        Taken { full, steps, restarted: restarted.swap_remove(0) }
    }
}

/// The program runs before its supervisor can be asked for a checkpoint.
fn wait_until_known(sandbox: &Sandbox, job: &Job) {
    sandbox.wait_for("the job to be known", SOON, || {
        assert!(!job.running().has_ended(), "{}", job.running().stderr());
        sandbox.run(verb("status", ["--json"]).arg(job.dir())).code() == 0
    });
}

/// The one signal that the program waits for.
fn signal(sandbox: &Sandbox, program: i32) {
    sandbox.kill(program, Signal::SIGUSR1 as i32).expect("the program lives");
}

/// Restarts, eagerly and lazily by turns, and waits until the program itself runs.
fn restart(sandbox: &Sandbox, job: &mut Job) {
    restart_at(sandbox, job, job.newest(), MODES[job.restarts() % MODES.len()], &[]);
}

fn restart_at(sandbox: &Sandbox, job: &mut Job, id: u64, mode: Mode, options: &[&str]) {
    job.restart_at(id, mode, &[&["--json"], options].concat());
    let job = &*job;
    sandbox.wait_for("the program to run again", SOON, || {
        let running = job.running();
        assert!(!running.has_ended(), "the restart failed: {}", running.stderr());
        running.stderr().contains("resume_us")
    });
    wait_until_known(sandbox, job);
}

/// Has the program compare every page.
fn compare(sandbox: &Sandbox, job: &Job, program: i32, time: u64) {
    let sent = sandbox.kill(program, Signal::SIGUSR1 as i32);
    assert!(sent.is_ok(), "the program has ended: {}", job.running().stderr());
    let right = format!("right {time}\n");
    sandbox.wait_for(&right, SOON, || {
        let running = job.running();
        assert!(!running.has_ended(), "{}", running.stderr());
        String::from_utf8_lossy(&running.stdout()).contains(&right)
    });
}

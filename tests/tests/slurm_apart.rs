//! Tasks of a step of Slurm's do not ask it in one moment, however many they are.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ckpt_tests::Cmd;
use ckpt_tests::slurm::commands::{Job, Way, by};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);

/// Notes which task has asked, and when.
const NOTE: &str = r#"echo "task $SLURM_PROCID $(date +%s%N)" >>"$here/asked"
echo RUNNING UNLIMITED"#;

/// Each waits ten milliseconds for every task before it, and asks then.
#[test]
fn tasks_of_one_step_ask_one_after_another() {
    by(Way::Root, "slurm_apart", a_late_task_asks_late);
}

fn a_late_task_asks_late(job: &Job) {
    job.have("squeue", NOTE);
    let program = Cmd::new("/bin/sh").args(["-c", "echo on; exec sleep 1000"]);
    let task = |number: &str| {
        let step = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "5000"), ("SLURM_PROCID", number)];
        let cmd = job.command(&["--no-requeue"], 0, &program);
        job.sandbox.spawn(step.into_iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value)))
    };
    let first = || {
        let asked = job.asked();
        let complete = asked.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete.lines().find_map(|line| line.strip_prefix("task ")).map(str::to_owned)
    };
    let begun = SystemTime::now();
    let tasks = ["4000", "200"].map(task);
    job.sandbox.wait_for("a task to ask", SOON, || first().is_some());
    let first = first().unwrap();
    let (number, at) = first.split_once(' ').unwrap();
    let at = UNIX_EPOCH + Duration::from_nanos(at.parse().unwrap());
    assert_eq!(number, "200", "{first}");
    assert!(at >= begun + Duration::from_secs(2), "{:?}", at.duration_since(begun));
    for running in tasks {
        running.wait_for_output("on\n", SOON);
        running.kill(Signal::SIGTERM);
        running.wait(SOON).expect_code(85);
    }
}

//! Tasks of a step of Slurm's do not ask it in one moment, however many they are.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ckpt_tests::scenario::verb;
use ckpt_tests::{Cmd, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);

/// Notes which task has asked, and when.
const SQUEUE: &str = "#!/bin/sh
echo \"$SLURM_PROCID $(date +%s%N)\" >>\"${0%/*}/asked\"
echo RUNNING UNLIMITED
";

/// Each waits ten milliseconds for every task before it, and asks then.
#[test]
fn tasks_of_one_step_ask_one_after_another() {
    let sandbox = Sandbox::new("slurm_apart");
    let [fake, home] = [sandbox.dir().join("fake"), sandbox.dir()];
    std::fs::create_dir(&fake).unwrap();
    std::fs::write(fake.join("squeue"), SQUEUE).unwrap();
    std::fs::set_permissions(fake.join("squeue"), PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", fake.display());
    let program = Cmd::new("/bin/sh").args(["-c", "echo on; exec sleep 1000"]);
    let task = |number: &str| {
        let step = [
            ("PATH", path.as_str()),
            ("SLURM_JOB_ID", "41"),
            ("SLURMD_NODENAME", "n1"),
            ("SLURM_SUBMIT_DIR", home.to_str().unwrap()),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "5000"),
            ("SLURM_PROCID", number),
        ];
        let cmd = verb("slurm", ["run", "--no-requeue", "--"]).program(&program);
        sandbox.spawn(step.into_iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value)))
    };
    let begun = SystemTime::now();
    let tasks = ["4000", "200"].map(task);
    let asked = || std::fs::read_to_string(fake.join("asked")).unwrap_or_default();
    sandbox.wait_for("a task to ask", SOON, || asked().ends_with('\n'));
    let first = asked();
    let (number, at) = first.lines().next().unwrap().split_once(' ').unwrap();
    let at = UNIX_EPOCH + Duration::from_nanos(at.parse().unwrap());
    assert_eq!(number, "200", "{first}");
    assert!(at >= begun + Duration::from_secs(2), "{:?}", at.duration_since(begun));
    for running in tasks {
        running.wait_for_output("on\n", SOON);
        running.kill(Signal::SIGTERM);
        running.wait(SOON).expect_code(85);
    }
}

//! A job of Slurm's that goes on on a node of another name, where its TMPDIR is another one.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ckpt_tests::scenario::{held, let_go, verb};
use ckpt_tests::{Cmd, Expected, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Sets the name of the machine, in a namespace of its own; what follows is the command.
const ON: &str = "hostname \"$1\" && shift && exec \"$@\"";

#[test]
fn a_job_goes_on_under_another_hostname_and_without_its_old_tmpdir() {
    let sandbox = Sandbox::new("slurm_elsewhere");
    let (home, fake) = (sandbox.dir(), sandbox.dir().join("fake"));
    std::fs::create_dir(&fake).unwrap();
    for (name, line) in [("squeue", "echo RUNNING UNLIMITED"), ("scontrol", "exit 0")] {
        std::fs::write(fake.join(name), format!("#!/bin/sh\n{line}\n")).unwrap();
        std::fs::set_permissions(fake.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", fake.display());
    let counter = victim_cmd("count_static").args(["numbers", "800", "2000"]);
    let expected = Expected::of(&sandbox, &counter, Some("numbers"));
    let tmpdir = |name: &str| home.join(format!("tmp-{name}"));
    let on = |name: &str, restarts: &str, program: &Cmd| {
        std::fs::create_dir(tmpdir(name)).unwrap();
        let job = [
            ("PATH", path.as_str()),
            ("TMPDIR", tmpdir(name).to_str().unwrap()),
            ("SLURM_JOB_ID", "41"),
            ("SLURM_RESTART_COUNT", restarts),
            ("SLURMD_NODENAME", name),
            ("SLURM_SUBMIT_DIR", home.to_str().unwrap()),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        let cmd = verb("slurm", ["run", "-i", "0.1", "--"]).program(program);
        let cmd = job.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value));
        Cmd::new("unshare").args(["--uts", "/bin/sh", "-c", ON, "sh", name]).program(&cmd)
    };
    let host = || {
        let record = std::fs::read(home.join("ckptbpf/41/job.json")).unwrap();
        serde_json::from_slice::<Value>(&record).unwrap()["host"].clone()
    };
    let first = sandbox.spawn(on("first", "0", &held(&sandbox, counter.clone())));
    first.wait_for_output("\n", SOON);
    sandbox.wait_for("a checkpoint", SOON, || {
        assert!(!first.has_ended(), "{}", first.stderr());
        let entries = std::fs::read_dir(home.join("ckptbpf/41")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "ckpt"))
    });
    assert_eq!(host(), "first");
    first.kill(Signal::SIGUSR1);
    let printed = first.wait(SOON).success().stdout;
    std::fs::remove_dir_all(tmpdir("first")).unwrap();
    let_go(&sandbox);
    let second = sandbox.run(on("second", "1", &counter)).success();
    assert_same("standard output", &expected.stdout, &[printed, second.stdout].concat());
    assert_same("the file", &expected.file, &std::fs::read(home.join("numbers")).unwrap());
    assert_eq!(host(), "second");
}

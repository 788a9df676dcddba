//! What Slurm's daemons call on a node, without a Slurm: prologs that would wait for ever, and what is left of daemons that nobody has ended.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::user::UID;
use ckpt_tests::{Cmd, Sandbox, ckptbpf};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// All that a daemon of a job may have.
const FILES: [&str; 6] = ["sock", "sock.lock", "pid", "pid.new", "log", "err"];

/// `slurm/NAME` as slurmd calls it on the node n1, which hands on no PATH, with ckptbpf from the folder `bin`.
fn hook(name: &str, bin: &Path, job: &str) -> Cmd {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("slurm").join(name);
    let told = [
        format!("CKPTBPF_PATH={}", bin.display()),
        "SLURMD_NODENAME=n1".to_owned(),
        format!("SLURM_JOB_ID={job}"),
        format!("SLURM_JOB_UID={UID}"),
    ];
    Cmd::new("/usr/bin/env").arg("-i").args(&told).arg("/bin/sh").arg(script)
}

/// A daemon that never comes: the job begins, and no process and no file of it is left.
#[test]
fn a_prolog_whose_daemon_hangs_lets_the_job_begin() {
    let sandbox = Sandbox::new("slurm_prolog");
    // As the prolog has it, with less patience.
    let hasty = "#!/bin/sh\necho \"$*\" >>\"${0%/*}/asked\"\nshift 3\nexec /usr/bin/timeout -k 1 1 \"$@\"\n";
    let hangs = "#!/bin/sh\n[ \"$2\" = --check ] && exit 1\nexec sleep 1000\n";
    let fake = folder_of(&sandbox, [("ckptbpf", hangs), ("timeout", hasty)]);
    sandbox.run(hook("prolog", &fake, "41")).success();
    let asked = std::fs::read_to_string(fake.join("asked")).unwrap();
    assert!(asked.contains("-k 5 60 ckptbpf daemon --job 41 "), "{asked}");
    assert!(!of_job(&sandbox, "41", "err").exists());
}

/// A daemon in the background says why it fails in its log, which goes with the job: the system's log has it, too.
#[test]
fn why_a_job_has_no_daemon_is_in_the_system_s_log() {
    let sandbox = Sandbox::new("slurm_why");
    let fails = "#!/bin/sh\n[ \"$2\" = --check ] && exit 1\nwhile [ \"$1\" != --log ]; do shift; done\necho the reason >\"$2\"\nexit 125\n";
    let logger = "#!/bin/sh\necho \"$*\" >>\"${0%/*}/said\"\n";
    let fake = folder_of(&sandbox, [("ckptbpf", fails), ("logger", logger)]);
    sandbox.run(hook("prolog", &fake, "41")).success();
    let said = std::fs::read_to_string(fake.join("said")).unwrap();
    assert!(said.contains("job 41 has no daemon: the reason\n"), "{said}");
    sandbox.run("rm /run/ckptbpf/slurm/n1-41.log").success();
}

/// Ended by kill -9, without a number, or about to write one: the epilog of another job tells them apart, and the own one ends what runs.
#[test]
fn what_daemons_leave_without_an_epilog_goes_and_what_runs_stays() {
    let sandbox = Sandbox::new("slurm_epilog");
    let bin = ckptbpf().parent().unwrap().to_owned();
    for job in ["7", "8"] {
        sandbox.run(hook("prolog", &bin, job)).success();
    }
    let [dead, alive] = ["7", "8"].map(|job| {
        let number = std::fs::read_to_string(of_job(&sandbox, job, "pid")).unwrap();
        number.trim().parse::<i32>().unwrap()
    });
    let runs = |pid: i32| sandbox.ps().iter().any(|process| process.pid == pid);
    sandbox.kill(dead, Signal::SIGKILL as i32).unwrap();
    sandbox.wait_for("the end of a daemon", SOON, || !runs(dead));
    sandbox.run("cd /run/ckptbpf/slurm && mv n1-7.pid n1-7.pid.new && rm n1-8.pid").success();
    assert!(of_job(&sandbox, "7", "sock.lock").exists());
    sandbox.run(hook("epilog", &bin, "9")).success();
    // But for its log: what is written there may say why it has ended.
    let is_left = |end: &&str| of_job(&sandbox, "7", end).exists();
    assert_eq!(FILES.into_iter().filter(is_left).collect::<Vec<_>>(), ["log"]);
    assert!(
        ["sock", "sock.lock", "log"].iter().all(|end| of_job(&sandbox, "8", end).exists()) && runs(alive)
    );
    sandbox.run(hook("epilog", &bin, "8")).success();
    sandbox.wait_for("the end of the other one", SOON, || !runs(alive));
    assert!(FILES.iter().all(|end| !of_job(&sandbox, "8", end).exists()));
    sandbox.run("rm /run/ckptbpf/slurm/n1-7.log").success();
}

/// An epilog takes a dead daemon's files away while the next one begins in its place: it does, with all of its files.
#[test]
fn a_daemon_begins_where_an_epilog_clears_away() {
    let sandbox = Sandbox::new("slurm_begins");
    let bin = ckptbpf().parent().unwrap().to_owned();
    sandbox.run(hook("prolog", &bin, "7")).success();
    let number = || std::fs::read_to_string(of_job(&sandbox, "7", "pid")).unwrap();
    let dead: i32 = number().trim().parse().unwrap();
    sandbox.kill(dead, Signal::SIGKILL as i32).unwrap();
    sandbox.wait_for("its end", SOON, || !sandbox.ps().iter().any(|process| process.pid == dead));
    // As an epilog does while it removes them, and for as long as this says.
    let folder = "cd /run/ckptbpf/slurm";
    let clears = "exec 9>>n1-7.sock.lock && flock -n 9 && touch cleared && sleep 0.3 && rm n1-7.sock n1-7.sock.lock n1-7.pid";
    let clearing = sandbox.spawn(format!("{folder} && {clears}").as_str());
    sandbox.wait_for("the lock", SOON, || of_job(&sandbox, "7", "pid").with_file_name("cleared").exists());
    sandbox.run(hook("prolog", &bin, "7")).success();
    clearing.wait(SOON).success();
    assert_ne!(number().trim().parse::<i32>().unwrap(), dead);
    assert!(["sock", "sock.lock"].iter().all(|end| of_job(&sandbox, "7", end).exists()));
    sandbox.run(hook("epilog", &bin, "7")).success();
    sandbox.run("rm /run/ckptbpf/slurm/cleared").success();
}

/// A log without a daemon is there to be read for a day.
#[test]
fn a_log_that_nobody_writes_any_more_goes_after_a_day() {
    let sandbox = Sandbox::new("slurm_logs");
    let bin = ckptbpf().parent().unwrap().to_owned();
    let old = "cd /run/ckptbpf/slurm && touch n1-3.log && touch -d '25 hours ago' n1-4.log n1-5.err";
    sandbox.run(format!("mkdir -p /run/ckptbpf/slurm && {old}").as_str()).success();
    sandbox.run(hook("epilog", &bin, "9")).success();
    assert!(of_job(&sandbox, "3", "log").exists());
    assert!(!of_job(&sandbox, "4", "log").exists() && !of_job(&sandbox, "5", "err").exists());
    sandbox.run("rm /run/ckptbpf/slurm/n1-3.log").success();
}

/// A folder with these scripts.
fn folder_of(sandbox: &Sandbox, scripts: [(&str, &str); 2]) -> PathBuf {
    let folder = sandbox.dir().join("fake");
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in scripts {
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    folder
}

/// A file of a job's daemon, by its ending.
fn of_job(sandbox: &Sandbox, job: &str, ending: &str) -> PathBuf {
    sandbox.see(Path::new(&format!("/run/ckptbpf/slurm/n1-{job}.{ending}")))
}

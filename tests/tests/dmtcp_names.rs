//! The names of DMTCP: orders to running jobs, options that do nothing here and those that cannot be had, exit statuses, and files
//! that stand for checkpoints, or do not.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ckpt_tests::scenario::{Scripts, Tool, ckptbpf, let_go, verb};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Running, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn scripts(sandbox: &Sandbox) -> Scripts<'_> {
    Scripts::of(sandbox, Tool::default(), 3000, 2000)
}

/// Waits until `dmtcp_command -s` says that a program runs; what it says.
fn running(sandbox: &Sandbox, scripts: &Scripts<'_>, options: &str) -> String {
    let mut said = String::new();
    sandbox.wait_for("the job to be known", SOON, || {
        said = scripts.run(&format!("dmtcp_command -s {options}")).stdout_text();
        said.contains("RUNNING=yes")
    });
    said
}

/// A job that has one checkpoint, and was killed.
fn killed(scripts: &Scripts<'_>) {
    let running = scripts.start("dmtcp_launch -i 1 ./count");
    scripts.wait_for_checkpoint(&running, 0, SOON);
    scripts.kill_everything();
    running.wait(SOON).expect_code(137);
}

#[test]
fn orders_to_running_jobs() {
    let sandbox = Sandbox::new("dmtcp_orders");
    let scripts = scripts(&sandbox);
    let job = scripts.start("dmtcp_launch -p 0 --port-file port ./count");
    let mut port = String::new();
    sandbox.wait_for("the port", SOON, || {
        port = std::fs::read_to_string(scripts.folder().join("port")).unwrap_or_default();
        port.ends_with('\n')
    });
    let port = port.trim();
    let command = |order: &str| scripts.run(&format!("DMTCP_COORD_PORT={port} dmtcp_command {order}"));
    let said = running(&sandbox, &scripts, &format!("-p {port}"));
    let of_port = format!("  Port: {port}");
    for line in [of_port.as_str(), "  NUM_PEERS=1", "  CKPT_INTERVAL=0 (checkpoint manually)"] {
        assert!(said.lines().any(|one| one == line), "{line}: {said}");
    }
    let said = command("-l").success().stdout_text();
    assert!(said.contains("1, ./count[") && said.contains("RUNNING"), "{said}");
    assert!(scripts.pointers().is_empty());
    command("-bc").success();
    assert_eq!((scripts.newest(), scripts.pointers().len()), (1, 1));
    command("-i 1").success();
    assert!(command("--status").success().stdout_text().contains("CKPT_INTERVAL=1\n"));
    scripts.wait_for_checkpoint(&job, 1, SOON);
    command("i 0").success();
    command("c").success();
    // Other coordinators' jobs are not meant.
    scripts.run("dmtcp_command -s").expect_code(99);
    scripts.run("DMTCP_FAIL_RC=7 dmtcp_command -k -p 1").expect_code(7);
    command("-k").success();
    job.wait(SOON).success();
    let before = scripts.newest();
    let job = scripts.start(&format!("dmtcp_restart --coord-port {port} ckpt_*.dmtcp"));
    running(&sandbox, &scripts, &format!("-p {port}"));
    command("-kc").success();
    job.wait(SOON).success();
    assert!(scripts.newest() > before);
    command("-s").expect_code(99);
    let_go(&sandbox);
    let last = scripts.start("dmtcp_restart -i 0 ckpt_*.dmtcp").wait(SOON).success();
    scripts.is_whole(&last.stdout);
    // All of its processes end.
    let job = scripts.start("dmtcp_launch -p 4002 /bin/sh -c 'sleep 1000 & sleep 1001; exit 3'");
    sandbox.wait_for("three processes", SOON, || {
        scripts.run("dmtcp_command -p 4002 -s").stdout_text().contains("NUM_PEERS=3\n")
    });
    scripts.run("dmtcp_command -p 4002 -k").success();
    job.wait(SOON).success();
    sandbox.wait_until_empty(SOON);
}

/// It runs on: whoever has an order for it is told at once.
#[test]
fn orders_to_a_program_whose_ckptbpf_was_killed() {
    let sandbox = Sandbox::new("dmtcp_unsupervised");
    let scripts = scripts(&sandbox);
    let job = scripts.start("exec dmtcp_launch ./count");
    running(&sandbox, &scripts, "");
    job.kill(Signal::SIGKILL);
    job.wait(SOON).expect_code(137);
    for order in ["-c", "-kc", "-k", "-i 5", "-q"] {
        let said = scripts.run(&format!("dmtcp_command {order}")).expect_code(99).stderr_text();
        assert!(said.contains("the program runs without") && said.contains("attach -d /"), "{order}: {said}");
    }
    let said = scripts.run("dmtcp_command -l").success().stdout_text();
    assert!(said.contains("RUNNING (without ckptbpf)"), "{said}");
    scripts.kill_everything();
}

#[test]
fn a_coordinator_is_no_process_unless_it_is_in_the_foreground() {
    let sandbox = Sandbox::new("dmtcp_coordinator");
    let scripts = scripts(&sandbox);
    let said = scripts.run("dmtcp_coordinator --daemon -i 1 --ckptdir x").success().stderr_text();
    assert!(said.contains("    Port: 7779\n") && said.contains("without effect here"), "{said}");
    assert!(sandbox.ps().is_empty(), "{:?}", sandbox.ps());
    let said = scripts.run("dmtcp_command -s").success().stdout_text();
    assert!(said.contains("NUM_PEERS=0\n  RUNNING=no\n  CKPT_INTERVAL=1\n"), "{said}");
    // Of jobs to come.
    scripts.run("dmtcp_command -i 7").success();
    assert!(scripts.run("dmtcp_command -s").success().stdout_text().contains("CKPT_INTERVAL=7\n"));
    scripts.run("dmtcp_command -i 1").success();
    scripts.run("dmtcp_command -c").expect_code(99);
    scripts.run("dmtcp_launch --new-coordinator -p 7779 ./count").expect_code(99);
    let job = scripts.start("dmtcp_launch --join-coordinator ./count");
    scripts.wait_for_checkpoint(&job, 0, SOON);
    scripts.no_port_is_open();
    let said = scripts.run("dmtcp_coordinator --daemon").expect_code(99).stderr_text();
    assert!(said.contains("dmtcp_command -p 7779 -q"), "{said}");
    scripts.run("dmtcp_command -q").success();
    job.wait(SOON).success();
    scripts.run("dmtcp_command -s").expect_code(99);
    scripts.run("dmtcp_launch -j ./count").expect_code(99);
    // One that is there as long as its jobs.
    scripts.run("dmtcp_coordinator -q --daemon --exit-on-last").success();
    scripts.run("dmtcp_launch /bin/true").success();
    scripts.run("dmtcp_command -s").expect_code(99);
    // In the foreground, and by what is typed there.
    let coordinator = scripts.start("exec dmtcp_coordinator");
    sandbox.wait_for("the coordinator", SOON, || scripts.run("dmtcp_command -s").code() == 0);
    scripts.no_port_is_open();
    scripts.run("dmtcp_command -q").success();
    coordinator.wait(SOON).success();
    let typed = scripts.run("echo slq | dmtcp_coordinator -p 0").success().stdout_text();
    assert!(typed.contains("RUNNING=no") && typed.contains("Client List:"), "{typed}");
    // One that was killed is none.
    let coordinator = scripts.start("exec dmtcp_coordinator");
    sandbox.wait_for("the coordinator", SOON, || scripts.run("dmtcp_command -s").code() == 0);
    coordinator.kill(Signal::SIGKILL);
    coordinator.wait(SOON).expect_code(137);
    scripts.run("dmtcp_command -s").expect_code(99);
}

#[test]
fn options_in_vain_and_options_that_cannot_be_had() {
    let sandbox = Sandbox::new("dmtcp_options");
    let scripts = scripts(&sandbox);
    let line = "dmtcp_launch --rm --ckpt-signal 10 --ckpt-open-files /bin/true";
    let said = scripts.run(line).success().stderr_text();
    assert_eq!(said, "ckptbpf: without effect here, and not needed: --rm, --ckpt-signal\n");
    for quiet in ["dmtcp_launch -q --rm /bin/true", "DMTCP_QUIET=1 dmtcp_launch --rm /bin/true"] {
        assert_eq!(scripts.run(quiet).success().stderr_text(), "", "{quiet}");
    }
    assert!(scripts.images().is_empty(), "no checkpoint, and nothing of one");
    for (line, words) in [
        ("dmtcp_launch --with-plugin x.so /bin/true", "--with-plugin cannot be had"),
        ("dmtcp_launch --nonsense /bin/true", "--nonsense: there is no such option"),
        ("dmtcp_launch -i", "-i takes a value"),
        ("DMTCP_CHECKPOINT_INTERVAL=often dmtcp_launch /bin/true", "DMTCP_CHECKPOINT_INTERVAL: 'often'"),
        ("dmtcp_launch -h elsewhere.invalid /bin/true", "another host than this one"),
        ("DMTCP_COORD_HOST=elsewhere.invalid dmtcp_command -s", "another host than this one"),
        ("dmtcp_launch", "no program was given"),
        ("dmtcp_launch ./none", "./none: not found"),
        ("dmtcp_restart", "no checkpoint was named"),
        ("dmtcp_command", "no order was given"),
        ("dmtcp_coordinator x", "x: dmtcp_coordinator takes options, and a port at the end"),
    ] {
        let said = scripts.run(line).expect_code(99).stderr_text();
        assert!(said.contains(words) && said.starts_with("ckptbpf: "), "{line}: {said}");
    }
    assert!(scripts.images().is_empty());
    scripts.run("dmtcp_launch -h $(uname -n) --no-gzip /bin/sh -c 'exit 3'").expect_code(3);
    scripts.run("dmtcp_launch /bin/sh -c 'kill -9 $$'").expect_code(137);
    // Nobody can tell it from ckptbpf's own.
    scripts.run("dmtcp_launch /bin/sh -c 'exit 125'").expect_code(99);
    let help = scripts.run("dmtcp_launch --help").success().stdout_text();
    assert!(help.contains("--exit-after-ckpt") && help.contains("Usage: dmtcp_launch"), "{help}");
    let version = scripts.run("dmtcp_restart --version").success().stdout_text();
    assert!(version.starts_with("dmtcp_restart (ckptbpf "), "{version}");
}

/// A panic is a failure of ckptbpf's own, under each of its names.
#[test]
fn planted_bugs_that_panic_have_the_status_of_a_failure() {
    const NAME: &str = "planted_bugs_that_panic_have_the_status_of_a_failure";
    if std::env::var_os("CKPTBPF_PLANTED").is_none() {
        return skip(NAME, "needs ckptbpf built once more: cargo xtask soak");
    }
    let sandbox = Sandbox::new("dmtcp_panic");
    let planted = ckptbpf().with_file_name("ckptbpf-planted");
    for name in ["dmtcp_launch", "dmtcp_command", "any"] {
        std::os::unix::fs::symlink(&planted, sandbox.dir().join(name)).unwrap();
    }
    for (line, status) in [
        ("./dmtcp_launch /bin/true", 99),
        ("DMTCP_FAIL_RC=7 ./dmtcp_launch /bin/true", 7),
        ("./dmtcp_command -s", 99),
        ("./any launch -- /bin/true", 125),
    ] {
        let panics = Cmd::sh(line).env("CKPTBPF_PLANT", "panic");
        let said = sandbox.run(panics).expect_code(status).stderr_text();
        assert!(said.contains("a planted one"), "{line}: {said}");
    }
    sandbox.run("./dmtcp_launch /bin/true").success();
}

/// What it starts is in its checkpoints already.
#[test]
fn a_program_that_ckptbpf_has_started_is_launched_in_no_other_one() {
    let sandbox = Sandbox::new("dmtcp_within");
    let scripts = scripts(&sandbox);
    for line in ["dmtcp_launch -p 0 ./count", "dmtcp_restart x.dmtcp"] {
        let outer = format!("dmtcp_launch /bin/sh -c '{line}; exit $?'");
        let said = scripts.run(&outer).expect_code(99).stderr_text();
        assert!(said.contains("takes checkpoints already"), "{line}: {said}");
    }
    assert!(scripts.images().is_empty());
    // One after another they are no part of each other; nor is who only asks.
    scripts.run("dmtcp_launch -p 0 /bin/true; dmtcp_launch -p 0 /bin/true").success();
    scripts.run("dmtcp_launch /bin/sh -c 'dmtcp_launch --version; exit 3'").expect_code(3);
}

/// Who removes the file has removed the checkpoint; who has moved it has not.
#[test]
fn a_file_that_is_removed_takes_its_checkpoints_with_it() {
    let sandbox = Sandbox::new("dmtcp_removed");
    let scripts = scripts(&sandbox);
    killed(&scripts);
    let first = scripts.images();
    scripts.run("mkdir kept && mv ckpt_*.dmtcp kept/last.dmtcp").success();
    assert_eq!(scripts.run("dmtcp_launch /bin/true").success().stderr_text(), "");
    assert_eq!(scripts.images(), first);
    let job = scripts.start("dmtcp_restart -i 1 --exit-after-ckpt kept/last.dmtcp");
    job.wait(SOON).success();
    assert_eq!((scripts.images(), scripts.pointers().len()), (first.clone(), 1));
    scripts.run("rm kept/last.dmtcp ckpt_*.dmtcp").success();
    let said = scripts.run("dmtcp_launch /bin/true").success().stderr_text();
    assert!(said.contains("was removed: so are the checkpoints"), "{said}");
    assert!(scripts.images().is_empty());
    // Of a job that runs it is there again with the next checkpoint, and one that is launched beside leaves its images alone.
    let job = scripts.start("dmtcp_launch -i 1 ./count");
    scripts.wait_for_checkpoint(&job, 0, SOON);
    scripts.run("rm ckpt_*.dmtcp; dmtcp_launch -p 0 /bin/true").success();
    scripts.wait_for_checkpoint(&job, scripts.newest(), SOON);
    // With no checkpoint to come, its end takes them away.
    scripts.run("dmtcp_command -i 0 && dmtcp_command -c && rm ckpt_*.dmtcp && dmtcp_command -k").success();
    let said = job.wait(SOON).success().stderr_text();
    assert!(said.contains("was removed: so are the checkpoints"), "{said}");
    assert!(scripts.images().is_empty());
}

/// Whether a folder's file system notes that a file was read (`noatime`, mount(8)).
fn notes_reading(folder: &Path) -> bool {
    let file = folder.join("probe");
    std::fs::write(&file, "x").unwrap();
    let now = SystemTime::now();
    File::open(&file).unwrap().set_times(FileTimes::new().set_accessed(now).set_modified(now)).unwrap();
    std::fs::read(&file).unwrap();
    let found = file.metadata().unwrap();
    (found.atime(), found.atime_nsec()) != (found.mtime(), found.mtime_nsec())
}

/// mv to another file system copies and removes.
#[test]
fn a_file_that_is_moved_to_another_file_system_keeps_its_checkpoints() {
    let sandbox = Sandbox::new("dmtcp_moved_far");
    let scripts = scripts(&sandbox);
    if !notes_reading(scripts.folder()) {
        return skip("dmtcp_moved_far", "the file system of the tests does not note that a file was read");
    }
    killed(&scripts);
    let images = scripts.images();
    scripts.run("mv ckpt_*.dmtcp /tmp/last.dmtcp").success();
    for _ in 0..2 {
        let said = scripts.run("dmtcp_launch /bin/true").success().stderr_text();
        assert!(said.contains("it was read since the last checkpoint"), "{said}");
        assert_eq!(scripts.images(), images);
    }
    let_go(&sandbox);
    let last = scripts.start("dmtcp_restart -i 0 /tmp/last.dmtcp").wait(SOON).success();
    scripts.is_whole(&last.stdout);
}

/// Who calls dmtcp_restart says that the job is over: that is believed of another host, and looked at on this one.
#[test]
fn a_job_of_another_host_is_taken_over_and_one_that_runs_here_is_not() {
    let sandbox = Sandbox::new("dmtcp_taken_over");
    let scripts = scripts(&sandbox);
    let job = scripts.start("dmtcp_launch -i 1 ./count");
    scripts.wait_for_checkpoint(&job, 0, SOON);
    let refused = scripts.run("dmtcp_restart ckpt_*.dmtcp").expect_code(99).stderr_text();
    assert!(refused.contains("is being written by ckptbpf"), "{refused}");
    scripts.wait_for_checkpoint(&job, scripts.newest(), SOON);
    scripts.kill_everything();
    job.wait(SOON).expect_code(137);
    let record = scripts.images()[0].join("job.json");
    let mut there: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    there["host"] = "node9".into();
    there["boot_id"] = "another".into();
    there["ended"] = serde_json::Value::Null;
    there["slurm"] = serde_json::json!({ "job": "40", "restarts": 0, "node": "n9" });
    std::fs::write(&record, there.to_string()).unwrap();
    // Of a job of Slurm's it is asked, in a job or outside of one.
    let squeue = |line: &str| {
        let write = format!("printf '#!/bin/sh\\n{line}\\n' >bin/squeue && chmod +x bin/squeue");
        scripts.run(&write).success();
    };
    squeue("echo RUNNING 5:00");
    for job in ["", "SLURM_JOB_ID=41 "] {
        let line = format!("{job}dmtcp_restart ckpt_*.dmtcp");
        let refused = scripts.run(&line).expect_code(99).stderr_text();
        assert!(refused.contains("job 40 writes there, and is in the queue"), "{refused}");
    }
    // Who does not answer keeps nobody.
    squeue("exit 1");
    let_go(&sandbox);
    let last = scripts.start("SLURM_JOB_ID=41 dmtcp_restart -i 0 ckpt_*.dmtcp").wait(SOON).success();
    let said = last.stderr_text();
    assert!(said.contains("whether job 40 is over is not known"), "{said}");
    assert!(said.contains("over from host node9") && said.contains("no more checkpoints"), "{said}");
    assert!(said.contains("both write to the same files"), "{said}");
    scripts.is_whole(&last.stdout);
}

#[test]
fn two_jobs_in_one_folder() {
    let sandbox = Sandbox::new("dmtcp_two_jobs");
    let scripts = scripts(&sandbox);
    let other = "mkdir other; cd other; exec dmtcp_launch --ckptdir .. -p 4001 -i 1 ../count";
    let jobs: Vec<Running<'_>> =
        ["dmtcp_launch -p 4000 -i 1 ./count", other].map(|script| scripts.start(script)).into();
    sandbox.wait_for("both checkpoints", SOON, || scripts.pointers().len() == 2);
    scripts.kill_everything();
    jobs.into_iter().for_each(|job| drop(job.wait(SOON).expect_code(137)));
    let said = scripts.run("dmtcp_restart ckpt_*.dmtcp").expect_code(99).stderr_text();
    assert!(said.contains("of several jobs") && said.matches(".dmtcp").count() >= 2, "{said}");
    let is_first = |path: &Path| {
        let dir = path.with_file_name(format!(".{}", path.file_stem().unwrap().to_str().unwrap()));
        let record = std::fs::read_to_string(dir.join("job.json")).unwrap();
        record.contains("\"4000\"")
    };
    let first = scripts.pointers().into_iter().find(|path| is_first(path)).unwrap();
    // Nor is it guessed which of a folder and its copy is meant.
    let copies = "cp -a . ../copied && dmtcp_restart $0 ../copied/$(basename $0)";
    let copies = copies.replace("$0", &first.display().to_string());
    let said = scripts.run(&copies).expect_code(99).stderr_text();
    assert!(said.contains("copies of one") && said.contains("../copied/"), "{said}");
    let_go(&sandbox);
    let last = scripts.start(&format!("dmtcp_restart -i 0 {}", first.display())).wait(SOON).success();
    scripts.is_whole(&last.stdout);
}

#[test]
fn files_that_stand_for_no_checkpoint() {
    let sandbox = Sandbox::new("dmtcp_no_checkpoint");
    let scripts = scripts(&sandbox);
    killed(&scripts);
    let whole = std::fs::read(&scripts.pointers()[0]).unwrap();
    let file = scripts.folder().join("x.dmtcp");
    let refused = |words: &str| {
        let said = scripts.run("dmtcp_restart x.dmtcp").expect_code(99).stderr_text();
        assert!(said.contains("x.dmtcp") && said.contains(words), "{words}: {said}");
    };
    refused("there is no such file");
    let images: [(&[u8], &str); 4] = [
        (b"DMTCP_CHECKPOINT_IMAGE_v2.0\n\0\0\0", "an image of DMTCP itself"),
        (b"", "no checkpoint of ckptbpf"),
        (&whole[..whole.len() / 2], "no checkpoint of ckptbpf"),
        (&[b'x'; 1 << 20], "no checkpoint of ckptbpf"),
    ];
    for (bytes, words) in images {
        std::fs::write(&file, bytes).unwrap();
        refused(words);
    }
    scripts.run("ln -sf ckpt_*.dmtcp x.dmtcp").success();
    refused("a symbolic link");
    scripts.run("rm x.dmtcp; mkdir x.dmtcp").success();
    refused("no checkpoint of ckptbpf");
    // The file without its checkpoints, and with those of another job.
    scripts.run("rmdir x.dmtcp; cp ckpt_*.dmtcp x.dmtcp; mv .ckpt_count_* aside").success();
    refused("its checkpoints are gone");
    scripts.run("mv aside .x; sed -i 's/^job=......../job=01234567/' x.dmtcp").success();
    refused("of another job");
    // By the checkpoints themselves, too.
    scripts.run("rm .x/job.json").success();
    refused("of another job");
    scripts.run("dmtcp_restart no_*.dmtcp").expect_code(99);
}

#[test]
fn compat_makes_four_links_and_replaces_nothing_else() {
    let sandbox = Sandbox::new("dmtcp_compat");
    let install = |dir: &str| sandbox.run(verb("compat", ["install", dir]));
    for _ in 0..2 {
        let said = install("bin").success().stdout_text();
        assert_eq!(said.lines().filter(|line| line.contains(" -> ")).count(), 4, "{said}");
    }
    let links = sandbox.run("cd bin; for name in *; do readlink $name; done").success().stdout_text();
    assert!(links.lines().count() == 4 && links.lines().all(|link| link.ends_with("/ckptbpf")), "{links}");
    sandbox.run("mkdir theirs; echo > theirs/dmtcp_command").success();
    let said = install("theirs").expect_code(125).stderr_text();
    assert!(said.contains("theirs/dmtcp_command: this is no link to ckptbpf"), "{said}");
    assert_eq!(sandbox.run("ls theirs").success().stdout_text(), "dmtcp_command\n");
    sandbox.run(verb("compat", ["remove", "bin"])).expect_code(125);
    // By another name it is the program that it always was.
    let said = sandbox.run("ln -s $(readlink bin/dmtcp_launch) any; ./any --version").success().stdout_text();
    assert!(said.starts_with("ckptbpf "), "{said}");
}

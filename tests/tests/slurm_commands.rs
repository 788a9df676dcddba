//! `ckptbpf slurm run` beside commands of Slurm's that say what a test has them say: in time, late, wrong, or never.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ckpt_tests::scenario::{Daemon, Tool, held, let_go};
use ckpt_tests::{Cmd, Expected, Running, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Each notes what it was asked, and then does what the test says.
const COMMAND: &str = r#"#!/bin/sh
here=${0%/*} name=${0##*/}
echo "$name $*" >>"$here/asked"
. "$here/$name.says"
"#;

/// A job of Slurm's, as far as its environment and its commands go.
struct Job<'b> {
    sandbox: &'b Sandbox,
    tool: Tool,
    fake: PathBuf,
}

impl<'b> Job<'b> {
    fn of(sandbox: &'b Sandbox, tool: Tool) -> Self {
        let fake = sandbox.dir().join("fake");
        std::fs::create_dir(&fake).unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            std::fs::write(fake.join(name), text).unwrap();
            std::fs::set_permissions(fake.join(name), PermissionsExt::from_mode(mode)).unwrap();
        };
        ["squeue", "scontrol"].into_iter().for_each(|name| write(name, COMMAND, 0o755));
        write("asked", "", 0o666);
        let job = Self { sandbox, tool, fake };
        job.have("squeue", "echo RUNNING UNLIMITED");
        job.have("scontrol", "exit 0");
        job
    }

    /// Has a command do this from now on.
    fn have(&self, command: &str, line: &str) {
        let says = self.fake.join(format!("{command}.says"));
        let new = says.with_extension("new");
        std::fs::write(&new, format!("{line}\n")).unwrap();
        std::fs::rename(&new, &says).unwrap();
    }

    /// Has squeue tell of a limit that is so many seconds from now.
    fn ends_in(&self, seconds: u64) {
        let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
        let tell = "echo \"RUNNING 0:$((left / 60)):$((left % 60))\"";
        self.have("squeue", &format!("left=$(({end} - $(date +%s))); [ $left -gt 0 ] || left=0; {tell}"));
    }

    fn asked(&self) -> String {
        std::fs::read_to_string(self.fake.join("asked")).unwrap()
    }

    fn was_queued_again(&self) -> bool {
        self.asked().contains("scontrol requeue 41\n")
    }

    fn home(&self) -> PathBuf {
        self.tool.user.as_ref().map_or_else(|| self.sandbox.dir(), |user| user.home().to_owned())
    }

    fn dir(&self) -> PathBuf {
        self.home().join("ckptbpf/41")
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir().join("job.json")).unwrap()).unwrap()
    }

    fn within(&self, cmd: Cmd, restarts: u32) -> Cmd {
        let path = format!("{}:/usr/bin:/bin", self.fake.display());
        let cmd = cmd.env("PATH", &path).env("SLURM_JOB_ID", "41").env("SLURMD_NODENAME", "n1");
        let cmd = cmd.env("SLURM_SUBMIT_DIR", self.home().to_str().unwrap());
        if restarts > 0 { cmd.env("SLURM_RESTART_COUNT", &restarts.to_string()) } else { cmd }
    }

    /// `ckptbpf slurm run OPTIONS -- PROGRAM` in the job, which was queued again so often.
    fn command(&self, options: &[&str], restarts: u32, program: &Cmd) -> Cmd {
        let program = self.tool.user.as_ref().map_or_else(|| program.clone(), |user| user.reaches(program));
        let cmd = self.tool.verb("slurm", ["run"]).args(options).arg("--").program(&program);
        self.within(cmd, restarts)
    }

    /// The same of a counter that does not take its last step, once it runs.
    fn count(&self, options: &[&str], restarts: u32) -> Running<'b> {
        let running = self.sandbox.spawn(self.command(options, restarts, &held(self.sandbox, counter())));
        match restarts {
            0 => running.wait_for_output("\n", SOON),
            _ => self.wait_for_supervisor(&running),
        }
        running
    }

    fn wait_for_supervisor(&self, running: &Running) {
        self.sandbox.wait_for("a supervisor", SOON, || {
            assert!(!running.has_ended(), "{}", running.stderr());
            self.sandbox.run(self.tool.verb("status", ["--json"]).arg(self.dir())).code() == 0
        });
    }

    fn wait_for_checkpoint(&self, running: &Running) {
        self.sandbox.wait_for("a checkpoint", SOON, || {
            assert!(!running.has_ended(), "{}", running.stderr());
            let entries = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "ckpt"))
        });
    }
}

fn counter() -> Cmd {
    victim_cmd("count_static").args(["numbers", "800", "2000"])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Root,
    Daemon,
    Alone,
}

/// A test in one of the ways in which ckptbpf comes by its rights.
fn by(way: Way, name: &str, test: impl FnOnce(&Job)) {
    let sandbox = Sandbox::new(name);
    let daemon = (way == Way::Daemon).then(|| Daemon::begin(&sandbox, &[]));
    let tool = if way == Way::Root { Tool::default() } else { Tool::of_user(&sandbox) };
    let tool = daemon.iter().fold(tool, |tool, daemon| daemon.serves(tool));
    test(&Job::of(&sandbox, tool));
    if let Some(daemon) = daemon {
        let log = daemon.end().stderr_text();
        assert!(log.contains(": worker "), "{log}");
    }
}

/// The clock asks for the last checkpoint before the limit, the job is queued again, and goes on from there.
fn the_last_checkpoint_is_taken_in_time(job: &Job) {
    let expected = Expected::of(job.sandbox, &counter(), Some("numbers"));
    // Sixty seconds, and what its own checkpoints have cost, are left to Slurm: it has the others to begin.
    job.ends_in(75);
    let first = job.count(&["-i", "0.2"], 0).wait(SOON).success();
    let said = first.stderr_text();
    assert!(said.contains("stopped with checkpoint ") && said.contains("job 41 is queued again"), "{said}");
    let asked = job.asked();
    assert!(job.was_queued_again() && asked.starts_with("squeue -h -o %T %L -j 41\n"), "{asked}");
    let record = job.record();
    assert_eq!((&record["ended"], &record["checkpointed"]), (&85.into(), &true.into()), "{record}");
    assert_eq!(record["slurm"], serde_json::json!({ "job": "41", "restarts": 0, "node": "n1" }));
    job.have("squeue", "echo RUNNING UNLIMITED");
    let_go(job.sandbox);
    let second = job.sandbox.run(job.command(&["-i", "0.2"], 1, &counter())).success();
    assert_same("standard output", &expected.stdout, &[first.stdout, second.stdout].concat());
    assert_same("the file", &expected.file, &std::fs::read(job.home().join("numbers")).unwrap());
    assert_eq!(job.record()["slurm"]["restarts"], 1);
    // It has come to its end: nobody queues it again.
    assert_eq!(job.asked().matches("requeue").count(), 1, "{}", job.asked());
}

#[test]
fn the_last_checkpoint_in_time_by_root() {
    by(Way::Root, "slurm_in_time_root", the_last_checkpoint_is_taken_in_time);
}

#[test]
fn the_last_checkpoint_in_time_by_daemon() {
    by(Way::Daemon, "slurm_in_time_daemon", the_last_checkpoint_is_taken_in_time);
}

#[test]
fn the_last_checkpoint_in_time_alone() {
    by(Way::Alone, "slurm_in_time_alone", the_last_checkpoint_is_taken_in_time);
}

/// Signals ask for the same; what somebody has ended is not queued again.
fn signals_ask_for_the_end(job: &Job) {
    let stopped = |options: &[&str], signal: Signal, restarts: u32, status: i32| {
        let running = job.count(options, restarts);
        running.kill(signal);
        running.wait(SOON).expect_code(status).stderr_text()
    };
    stopped(&["--no-requeue"], Signal::SIGUSR1, 0, 85);
    stopped(&["--no-requeue"], Signal::SIGTERM, 1, 85);
    assert!(!job.was_queued_again());
    job.have("squeue", "echo COMPLETING 5:00");
    let said = stopped(&[], Signal::SIGTERM, 2, 143);
    assert!(said.contains("job 41 is COMPLETING by now: whether it is queued again is not for"), "{said}");
    assert!(!job.was_queued_again());
    job.have("squeue", "echo RUNNING 5:00");
    stopped(&["--ckpt-signal", "USR2"], Signal::SIGUSR2, 3, 0);
    assert_eq!(job.asked().matches("scontrol requeue").count(), 1, "{}", job.asked());
    // What Slurm refuses is told, and the status is one by which it can be configured to do it itself.
    job.have("scontrol", "echo 'Requested operation is presently disabled for job 41' >&2; exit 1");
    let said = stopped(&[], Signal::SIGUSR1, 4, 85);
    assert!(said.contains("job 41 is not queued again: ") && said.contains("presently disabled"), "{said}");
    let_go(job.sandbox);
    job.sandbox.run(job.command(&[], 5, &counter())).success();
    let lines = std::fs::read_to_string(job.home().join("numbers")).unwrap().lines().count();
    assert_eq!(lines, 800);
}

#[test]
fn signals_ask_for_the_end_by_root() {
    by(Way::Root, "slurm_signals_root", signals_ask_for_the_end);
}

#[test]
fn signals_ask_for_the_end_by_daemon() {
    by(Way::Daemon, "slurm_signals_daemon", signals_ask_for_the_end);
}

#[test]
fn signals_ask_for_the_end_alone() {
    by(Way::Alone, "slurm_signals_alone", signals_ask_for_the_end);
}

/// Prints what it hears; with a socket that no checkpoint can have.
const UNFIT: &str = "
import signal, socket, sys
keep = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
def heard(number, frame):
    print('heard', number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, heard)
print('ready', flush=True)
while True:
    signal.pause()
";

/// Where there can be no checkpoint, SIGTERM is the program's, as if it had been started bare.
fn without_a_checkpoint_sigterm_is_the_program_s(job: &Job) {
    let program = Cmd::new("/usr/bin/python3").args(["-c", UNFIT]);
    let running = job.sandbox.spawn(job.command(&[], 0, &program));
    running.wait_for_output("ready", SOON);
    running.kill(Signal::SIGTERM);
    let ended = running.wait(SOON).expect_code(5);
    assert!(ended.stdout_text().contains("heard 15"), "{}", ended.stderr_text());
    assert!(ended.stderr_text().contains("the program gets SIGTERM"), "{}", ended.stderr_text());
    assert!(!job.was_queued_again());
}

#[test]
fn without_a_checkpoint_sigterm_is_the_program_s_by_root() {
    by(Way::Root, "slurm_unfit_root", without_a_checkpoint_sigterm_is_the_program_s);
}

#[test]
fn without_a_checkpoint_sigterm_is_the_program_s_by_daemon() {
    by(Way::Daemon, "slurm_unfit_daemon", without_a_checkpoint_sigterm_is_the_program_s);
}

/// Commands that fail, hang, or say nonsense cost a job nothing; nor do statuses that look like others.
#[test]
fn slurm_that_does_not_answer_costs_the_job_nothing() {
    by(Way::Root, "slurm_silent", |job| {
        let shell = |line: &str| Cmd::new("/bin/sh").args(["-c", line]);
        let says = [
            "exec sleep 1000",
            "exit 1",
            "echo gibberish; echo more",
            "echo RUNNING 99999999999999999999:00:00",
            "while :; do echo RUNNING 1:00; done",
            "kill -9 $$",
        ];
        for line in says {
            job.have("squeue", line);
            let ended = job.sandbox.run(job.command(&[], 0, &shell("echo fine; exit 3")));
            assert_eq!(ended.expect_code(3).stdout_text(), "fine\n", "{line}");
        }
        // As a program's own, 85 is a status like any other.
        job.have("squeue", "echo RUNNING 5:00");
        job.sandbox.run(job.command(&[], 1, &shell("exit 85"))).expect_code(85);
        assert!(!job.was_queued_again(), "{}", job.asked());
        // None at all, whatever this machine has.
        let bare = job.command(&[], 2, &shell("read -r word <gate")).env("PATH", "/nowhere");
        nix::unistd::mkfifo(&job.home().join("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let running = job.sandbox.spawn(bare);
        job.sandbox.wait_for("the clock's word", SOON, || {
            running.stderr().contains("how long the job has is not known: squeue cannot be run")
        });
        std::fs::write(job.home().join("gate"), "go\n").unwrap();
        running.wait(SOON).success();
        let outside = job.sandbox.run(job.tool.verb("slurm", ["run", "--", "true"])).expect_code(125);
        assert!(outside.stderr_text().contains("this is not in a Slurm job"), "{}", outside.stderr_text());
    });
}

/// A record, as of a node that went down while the job ran there.
fn lost(mut record: Value) -> Value {
    record["host"] = "node9".into();
    record["boot_id"] = "another".into();
    record["ended"] = Value::Null;
    record
}

/// A job that was queued again is taken from the node that it was on, and from no other run.
#[test]
fn another_node_is_taken_over_from_by_a_later_run_alone() {
    by(Way::Root, "slurm_other_node", |job| {
        let running = job.count(&["--no-requeue"], 0);
        running.kill(Signal::SIGUSR1);
        running.wait(SOON).expect_code(85);
        let elsewhere = |slurm: Value| {
            let mut record = job.record();
            record["slurm"] = slurm;
            std::fs::write(job.dir().join("job.json"), lost(record).to_string()).unwrap();
        };
        let run_of = |name: &str, restarts: u32| serde_json::json!({ "job": name, "restarts": restarts, "node": "n9" });
        let refused = |restarts: u32| {
            let command = job.command(&[], restarts, &counter());
            let said = job.sandbox.run(command).expect_code(125).stderr_text();
            assert!(said.contains("node9") && said.contains("--take-over"), "{said}");
        };
        elsewhere(run_of("41", 1));
        refused(1);
        elsewhere(Value::Null);
        refused(1);
        // Another job: while it is in the queue, and while nobody tells.
        for line in ["echo RUNNING 5:00", "exit 1"] {
            job.have("squeue", line);
            elsewhere(run_of("40", 0));
            refused(1);
        }
        let stopped = |restarts: u32| {
            let running = job.count(&["--no-requeue"], restarts);
            running.kill(Signal::SIGUSR1);
            running.wait(SOON).expect_code(85);
        };
        job.have("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1");
        elsewhere(run_of("40", 0));
        stopped(1);
        elsewhere(run_of("41", 1));
        job.have("squeue", "exit 1");
        let_go(job.sandbox);
        job.sandbox.run(job.command(&[], 2, &counter())).success();
    });
}

/// `--from`: another job's directory, by its number too; the new job's checkpoints go into its own. One that runs is refused.
#[test]
fn a_new_job_goes_on_from_another_one() {
    by(Way::Root, "slurm_from", |job| {
        let running = job.count(&["-d", "ckptbpf/40", "--no-requeue"], 0);
        running.kill(Signal::SIGUSR1);
        let first = running.wait(SOON).expect_code(85);
        let_go(job.sandbox);
        let expected = Expected::of(job.sandbox, &counter(), Some("numbers"));
        let none = job.sandbox.run(job.command(&["--from", "39"], 0, &counter())).expect_code(125);
        assert!(none.stderr_text().contains("ckptbpf/39"), "{}", none.stderr_text());
        let second = job.sandbox.run(job.command(&["--from", "40"], 0, &counter())).success();
        assert_same("standard output", &expected.stdout, &[first.stdout, second.stdout].concat());
        assert_same("the file", &expected.file, &std::fs::read(job.home().join("numbers")).unwrap());
        assert_eq!(job.record()["slurm"]["job"], "41");
        // By its path it is the same; of a job on another node that is in the queue it is refused.
        let from = job.home().join("ckptbpf/40/job.json");
        let mut record: Value = serde_json::from_slice(&std::fs::read(&from).unwrap()).unwrap();
        record["slurm"]["job"] = "40".into();
        std::fs::write(&from, lost(record).to_string()).unwrap();
        let again = job.command(&["--from", "./ckptbpf/40", "-d", "ckptbpf/42"], 0, &counter());
        let said = job.sandbox.run(&again).expect_code(125).stderr_text();
        assert!(said.contains("job 40 writes there, and is in the queue"), "{said}");
        job.have("squeue", "exit 0");
        job.sandbox.run(&again).success();
    });
}

/// A program in a step of several tasks has a directory of its own, ends nobody else, and is not run again when it has come to its end.
#[test]
fn tasks_of_one_step_are_jobs_of_their_own() {
    by(Way::Root, "slurm_tasks", |job| {
        let task = |cmd: Cmd, number: &str| {
            let step = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", number)];
            step.into_iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value))
        };
        let shell = |line: &str| Cmd::new("/bin/sh").args(["-c", line]);
        let first = task(job.command(&["-i", "0.1"], 0, &held(job.sandbox, counter())), "0");
        let first = job.sandbox.spawn(first);
        first.wait_for_output("\n", SOON);
        let second = task(job.command(&[], 0, &shell("echo once")), "1");
        assert_eq!(job.sandbox.run(second).success().stdout_text(), "once\n");
        assert!(job.dir().join("task_0").is_dir() && job.dir().join("task_1").is_dir());
        first.kill(Signal::SIGUSR1);
        first.wait(SOON).expect_code(85);
        assert!(!job.was_queued_again(), "{}", job.asked());
        let again = task(job.command(&[], 1, &shell("echo once")), "1");
        let said = job.sandbox.run(again).success();
        assert_eq!(said.stdout_text(), "");
        assert!(said.stderr_text().contains("has ended with 0 before the job was queued again"));
        let_go(job.sandbox);
        job.sandbox.run(task(job.command(&[], 1, &counter()), "0")).success();
    });
}

/// A directory is one program's: another line of the script is not taken for it, nor is one that has come to its end run once more
/// from its last checkpoint.
#[test]
fn programs_of_one_script_have_directories_of_their_own() {
    by(Way::Root, "slurm_programs", |job| {
        let shell = |line: &str| Cmd::new("/bin/sh").args(["-c", line]);
        let refused = |options: &[&str], restarts: u32, program: &Cmd, why: &str| {
            let ended = job.sandbox.run(job.command(options, restarts, program)).expect_code(125);
            assert!(ended.stderr_text().contains(why), "{}", ended.stderr_text());
        };
        job.sandbox.run(job.command(&[], 0, &shell("echo first"))).success();
        let why = "is of `/bin/sh -c echo first`, and not of `/bin/sh -c echo second`";
        refused(&[], 0, &shell("echo second"), why);
        let second = job.command(&["-d", "second"], 0, &shell("echo second"));
        assert_eq!(job.sandbox.run(second).success().stdout_text(), "second\n");
        // Nothing is left of the first to go on from: the directory is another program's in another run.
        let running = job.count(&["-i", "0.1"], 1);
        job.wait_for_checkpoint(&running);
        let_go(job.sandbox);
        running.wait(SOON).success();
        refused(&[], 1, &counter(), "its program has come to its end in this run of the job");
        refused(&[], 2, &shell("echo third"), "give each program a directory of its own (-d)");
        refused(&["-d", "fourth", "--from", "41"], 2, &shell("echo fourth"), "and not of `/bin/sh -c echo");
        assert!(!job.was_queued_again());
        // In a later run there is nothing left to do.
        let said = job.sandbox.run(job.command(&[], 2, &counter())).success().stderr_text();
        assert!(said.contains("has ended with 0 before the job was queued again"), "{said}");
    });
}

/// What comes of a restart that is refused is no checkpoint, whatever the run before has left.
fn a_restart_that_is_refused_is_not_queued_again(job: &Job) {
    let running = job.count(&["--no-requeue"], 0);
    running.kill(Signal::SIGUSR1);
    running.wait(SOON).expect_code(85);
    // The program has it open for writing.
    std::fs::remove_file(job.home().join("numbers")).unwrap();
    let refused = job.sandbox.run(job.command(&[], 1, &counter())).expect_code(125).stderr_text();
    assert!(refused.contains("numbers") && !job.was_queued_again(), "{refused}");
    // As the run before has left it.
    assert_eq!((&job.record()["ended"], &job.record()["checkpointed"]), (&85.into(), &true.into()));
}

#[test]
fn a_restart_that_is_refused_is_not_queued_again_by_root() {
    by(Way::Root, "slurm_refused_root", a_restart_that_is_refused_is_not_queued_again);
}

#[test]
fn a_restart_that_is_refused_is_not_queued_again_by_daemon() {
    by(Way::Daemon, "slurm_refused_daemon", a_restart_that_is_refused_is_not_queued_again);
}

/// What launch and restart take they are given, also by a worker.
fn options_are_passed_on(job: &Job) {
    let program = victim_cmd("count_static").args(["numbers", "400", "2000"]);
    let expected = Expected::of(job.sandbox, &program, Some("numbers"));
    let held = held(job.sandbox, program);
    let stored = ["--keep", "2", "--compress", "none", "--cpu-baseline", "x86-64-v2"];
    let launch = [&["-i", "0.1", "-v", "--take-over"][..], &stored].concat();
    let running = job.sandbox.spawn(job.command(&launch, 0, &held));
    running.wait_for_output("\n", SOON);
    job.wait_for_checkpoint(&running);
    running.kill(Signal::SIGUSR1);
    let first = running.wait(SOON).success();
    assert!(first.stderr_text().contains("checkpoint 1 (full)"), "{}", first.stderr_text());
    let options = &job.record()["options"];
    assert_eq!((&options["keep"], &options["compress"]), (&2.into(), &"none".into()), "{options}");
    let images = std::fs::read_dir(job.dir()).unwrap().flatten().map(|entry| entry.path());
    let newest = images.filter(|path| path.extension().is_some_and(|end| end == "ckpt")).max().unwrap();
    let told = job.sandbox.run(job.tool.verb("inspect", ["--json"]).arg(&newest)).success().stdout_text();
    assert!(told.contains("x86-64-v2"), "{told}");
    let_go(job.sandbox);
    let restart = ["--lazy", "--files", "keep", "-v"];
    let second = job.sandbox.run(job.command(&restart, 1, &held)).success();
    assert_same("standard output", &expected.stdout, &[first.stdout, second.stdout].concat());
}

#[test]
fn options_of_launch_and_restart_are_passed_on() {
    by(Way::Root, "slurm_options_root", options_are_passed_on);
}

#[test]
fn options_of_launch_and_restart_are_passed_on_by_daemon() {
    by(Way::Daemon, "slurm_options_daemon", options_are_passed_on);
}

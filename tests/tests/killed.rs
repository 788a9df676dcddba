//! kill -9 right before any system call that ckptbpf makes: of ckptbpf itself, and of the program.
//!
//! Each test counts the calls of one undisturbed checkpoint or restart, then strikes before some of them, spread over
//! all: as many as `CKPTBPF_KILLS` says.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::Duration;

use ckpt_tests::calls::{
    Calls, Deed, From, Kind, OF_A_CHECKPOINT, OF_A_RESTART, any, holds_up, injects, scans,
};
use ckpt_tests::deeds::{children, children_of, grandchildren, guardian, itself, never, strikes};
use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{Generation, kill_all, supervised, verb};
use ckpt_tests::{Cmd, Expected, Job, Running, Sandbox, victim_cmd};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(30);
const STEPS: u64 = 3000;

/// A program of three processes, its directory, and what is known of both.
struct Herd<'b> {
    sandbox: &'b Sandbox,
    dir: PathBuf,
    expected: Vec<String>,
    /// The first process, by its id in the box.
    pid: i32,
    /// Its standard output.
    stdout: PathBuf,
    step: usize,
    /// The newest checkpoint with all three processes in it, and the step that it was taken at.
    whole: (u64, usize),
}

impl<'b> Herd<'b> {
    /// The program, one step done, and the supervisor of that.
    fn launch(sandbox: &'b Sandbox, options: &[&str]) -> (Self, Running<'b>) {
        sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
        let program = victim_cmd("herd").args([&STEPS.to_string(), "f"]);
        let expected = String::from_utf8(Expected::of(sandbox, &program, None).stdout).unwrap();
        let dir = sandbox.dir().join("images");
        let launch = verb("launch", ["-d"]).arg(&dir).args(options).arg("--").program(&program).arg("signal");
        let running = sandbox.spawn(launch);
        running.wait_for_output("ready\n", SOON);
        let ours = |one: &&ckpt_tests::Process| one.comm == "herd" && one.parent == running.pid;
        let pid = sandbox.ps().iter().find(ours).expect("the program").pid;
        let expected = expected.lines().map(str::to_owned).collect();
        let stdout = running.stdout_path().to_owned();
        let mut herd = Self { sandbox, dir, expected, pid, stdout, step: 0, whole: (0, 0) };
        herd.wait_for_supervisor(&running);
        assert!(herd.lives_or_dies());
        (herd, running)
    }

    fn wait_for_supervisor(&self, running: &Running) {
        self.sandbox.wait_for("the supervisor", SOON, || {
            assert!(!running.has_ended(), "{}", running.stderr());
            supervised(self.sandbox, &self.dir) == Some(self.pid)
        });
    }

    fn lines(&self) -> usize {
        let printed = std::fs::read_to_string(&self.stdout).unwrap_or_default();
        // One may be there in part.
        printed.split_inclusive('\n').filter(|line| line.ends_with('\n') && *line != "ready\n").count()
    }

    /// Whether the program lives: then it takes its next step, and that is right. Otherwise nothing of it is left.
    fn lives_or_dies(&mut self) -> bool {
        let (before, mut lives) = (self.lines(), false);
        let _ = self.sandbox.kill(self.pid, Signal::SIGUSR1 as i32);
        self.sandbox.wait_for("its next step, or its end", SOON, || {
            lives = self.lines() > before;
            lives || self.sandbox.ps().is_empty()
        });
        if !lives {
            return false;
        }
        self.step += 1;
        let printed = std::fs::read_to_string(&self.stdout).unwrap();
        assert_eq!(printed.lines().last(), Some(self.expected[self.step].as_str()));
        true
    }

    fn listed(&self) -> Vec<Generation> {
        let listed = self.sandbox.run(verb("list", ["--json"]).arg(&self.dir)).success();
        serde_json::from_slice(&listed.stdout).unwrap()
    }

    /// How many threads a checkpoint has.
    fn tasks(&self, id: u64) -> u64 {
        self.listed().iter().find(|one| one.id == id).expect("it is kept").tasks
    }

    /// No checkpoint that has a name is damaged; the newest one's number.
    fn verify(&self) -> u64 {
        self.sandbox.run(verb("verify", [&self.dir])).success();
        let listed = self.listed();
        assert!(listed.iter().all(|one| one.complete));
        listed.last().map_or(0, |one| one.id)
    }

    /// The same, and a checkpoint that is new was taken at this step.
    fn verify_whole(&mut self) {
        let newest = self.verify();
        if newest > self.whole.0 {
            self.whole = (newest, self.step);
        }
    }

    /// One that came about while processes were killed, and has all of them, is as good as any other.
    fn require_right(&mut self) {
        let (whole, now) = (self.whole, self.verify());
        if self.tasks(now) == self.tasks(whole.0) && now > whole.0 {
            self.whole = (now, self.step);
            let running = self.restart(&[]);
            kill_all(self.sandbox, running);
        }
        self.whole = whole;
    }

    /// `ckptbpf restart` from the newest whole checkpoint.
    fn restart_cmd(&self, mode: &[&str]) -> Cmd {
        verb("restart", mode).args(["--at", &self.whole.0.to_string()]).arg(&self.dir)
    }

    /// A restart, traced from its start; what `deed` makes of ckptbpf's id comes right before call number `at` of a kind.
    fn traced_restart(&self, mode: &[&str], at: (Kind, u64), deed: fn(i32) -> Deed) -> (Running<'b>, Calls) {
        let gate = self.sandbox.dir().join("gate");
        if !gate.exists() {
            nix::unistd::mkfifo(&gate, Mode::S_IRWXU).unwrap();
        }
        let line = format!("read < {}; exec \"$@\"", gate.display());
        let running = self.sandbox.spawn(Cmd::sh(&line).arg("sh").program(&self.restart_cmd(mode)));
        let ckptbpf = running.outside_pid().expect("it waits");
        let calls = Calls::of(ckptbpf, From::Exec, at, deed(ckptbpf));
        std::fs::write(&gate, "\n").unwrap();
        (running, calls)
    }

    /// One checkpoint of the running supervisor, which is ended then if it has not been. Whether the deed was done.
    fn traced_checkpoint(&self, running: &Running, at: (Kind, u64), deed: Deed) -> (u64, bool) {
        let calls = Calls::of(running.outside_pid().expect("it runs"), From::Now, at, deed);
        let asked = self.sandbox.spawn(verb("checkpoint", [&self.dir]));
        self.sandbox.wait_for("the checkpoint's end", SOON, || asked.has_ended());
        asked.wait(SOON);
        let seen = calls.seen();
        running.kill(Signal::SIGKILL);
        (seen, calls.end())
    }

    /// How many files there are that a writer has not finished.
    fn half_written(&self) -> usize {
        let names = std::fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".tmp")).count()
    }

    /// Restarts it, and it takes the step after the checkpoint's.
    fn restart(&mut self, mode: &[&str]) -> Running<'b> {
        let running = self.sandbox.spawn(self.restart_cmd(mode));
        self.wait_for_supervisor(&running);
        assert!(self.goes_on(&running), "{}", running.stderr());
        running
    }

    /// Whether what `running` has restarted takes the step after the checkpoint's; otherwise nothing is left.
    fn goes_on(&mut self, running: &Running) -> bool {
        running.stdout_path().clone_into(&mut self.stdout);
        self.step = self.whole.1;
        self.lives_or_dies()
    }
}

fn sandbox(name: &str) -> Sandbox {
    Sandbox::with_limit(name, Duration::from_secs(3000))
}

/// ckptbpf is killed: the program runs on unharmed, every checkpoint is whole, and it can be attached, and restarted.
fn ckptbpf_is_killed_in_a_checkpoint(name: &str, options: &[&str], kind: Kind) {
    let sandbox = sandbox(name);
    let (mut herd, mut running) = Herd::launch(&sandbox, options);
    let mut at = vec![0];
    let (mut number, mut struck) = (0, 0);
    while number < at.len() {
        let ckptbpf = running.outside_pid().expect("it runs");
        let (seen, done) = herd.traced_checkpoint(&running, (kind, at[number]), itself(ckptbpf));
        struck += u64::from(done);
        running.wait(SOON).expect_code(137);
        herd.verify_whole();
        assert!(herd.lives_or_dies(), "killed before call {}: the program is gone", at[number]);
        if number == 0 {
            at.extend(strikes(name, seen));
        }
        running = if number % 4 == 3 {
            for process in sandbox.ps() {
                let _ = sandbox.kill(process.pid, Signal::SIGKILL as i32);
            }
            sandbox.wait_for("everybody's end", SOON, || sandbox.ps().is_empty());
            herd.restart(if number % 8 == 3 { &[] } else { &["--lazy"] })
        } else {
            let attach = verb("attach", ["-d"]).arg(&herd.dir).args(options).arg(herd.pid.to_string());
            let running = sandbox.spawn(attach);
            herd.wait_for_supervisor(&running);
            running
        };
        assert_eq!(herd.half_written(), 0, "killed before call {}: it has left something", at[number]);
        number += 1;
    }
    assert!(struck > 0, "every checkpoint had fewer calls than the strikes wait for");
    kill_all(&sandbox, running);
}

#[test]
fn ckptbpf_before_any_call_of_a_checkpoint() {
    ckptbpf_is_killed_in_a_checkpoint("killed_ckpt", &[], any);
}

/// Then the program makes calls that are injected: none is left half made.
#[test]
fn ckptbpf_before_any_call_of_a_checkpoint_without_bpf() {
    ckptbpf_is_killed_in_a_checkpoint("killed_without_bpf", &["--no-bpf"], any);
}

/// Before and within those calls themselves.
#[test]
fn ckptbpf_in_the_midst_of_injected_calls() {
    ckptbpf_is_killed_in_a_checkpoint("killed_injecting", &["--no-bpf"], injects);
}

/// A child that stops itself, and says how it goes on: whether the signal that it blocks is blocked, and one that it does not is
/// not.
const STOPPING: &str = r#"
import os, signal
def told(*_):
    print("told", flush=True)
if os.fork() == 0:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.signal(signal.SIGUSR1, told)
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)
        print(sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True)
while True:
    signal.pause()
"#;

/// While it makes calls for ckptbpf, all signals of a process that is stopped are held up: it undoes that by itself.
#[test]
fn ckptbpf_in_the_midst_of_calls_of_a_stopped_process() {
    let name = "killed_stopped";
    let sandbox = sandbox(name);
    let program = Cmd::new("/usr/bin/python3").args(["-c", STOPPING]);
    let mut job = Job::launch(&sandbox, &["--no-bpf"], &program);
    let is_stopped = |pid: i32| sandbox.ps().iter().any(|one| one.pid == pid && one.state == 'T');
    let child_of = |pid: i32| sandbox.ps().into_iter().find(|one| one.parent == pid && one.comm == "python3");
    let mut at = vec![0];
    let (mut number, mut struck) = (0, 0);
    while number < at.len() {
        let first = job.program();
        let mut child = 0;
        sandbox.wait_for("the child's stop", SOON, || {
            child = child_of(first).map_or(0, |child| child.pid);
            is_stopped(child)
        });
        let ckptbpf = job.running().outside_pid().expect("it runs");
        let calls = Calls::of(ckptbpf, From::Now, (holds_up, at[number]), itself(ckptbpf));
        let asked = sandbox.spawn(verb("checkpoint", [job.dir()]));
        sandbox.wait_for("the checkpoint's end", SOON, || asked.has_ended());
        asked.wait(SOON);
        if number == 0 {
            at.extend(strikes(name, calls.seen()));
        }
        job.lose_supervisor();
        struck += u64::from(calls.end());
        let said = job.stdout().len();
        sandbox.kill(child, Signal::SIGUSR1 as i32).unwrap();
        sandbox.kill(child, Signal::SIGCONT as i32).unwrap();
        let right = |said: &[u8]| matches!(said, b"told\n[12]\n" | b"[12]\ntold\n");
        sandbox.wait_for("what the child says", SOON, || job.stdout().len() >= said + 10);
        let says = job.stdout()[said..].to_vec();
        assert!(right(&says), "killed before call {}: {}", at[number], String::from_utf8_lossy(&says));
        job.attach(first, &["--no-bpf"]);
        number += 1;
    }
    assert!(struck > 0, "every checkpoint had fewer calls than the strikes wait for");
    job.kill_all();
}

/// The program is killed, or one process of it: ckptbpf ends or goes on as it should, and every checkpoint is whole. `strikes` are
/// the calls of a kind that it is killed before, of so many.
fn the_program_is_killed(name: &str, kind: Kind, strikes: fn(&str, u64) -> Vec<u64>) {
    let sandbox = sandbox(name);
    let (mut herd, mut running) = Herd::launch(&sandbox, &[]);
    let mut at = vec![0];
    let (mut number, mut struck) = (0, 0);
    while number < at.len() {
        let ckptbpf = running.outside_pid().expect("it runs");
        let deed = if number % 2 == 0 { children(ckptbpf) } else { grandchildren(ckptbpf) };
        let calls = Calls::of(ckptbpf, From::Now, (kind, at[number]), deed);
        let asked = sandbox.spawn(verb("checkpoint", [&herd.dir]));
        sandbox.wait_for("the checkpoint's end", SOON, || asked.has_ended());
        asked.wait(SOON);
        if number == 0 {
            at.extend(strikes(name, calls.seen()));
        }
        // First: the deed may be done at any moment, of a call beside the checkpoint.
        let has_ended = running.has_ended();
        if calls.is_done() && number % 2 == 0 {
            running.wait(SOON).expect_code(137);
        } else {
            assert!(!has_ended, "{}", running.stderr());
            kill_all(&sandbox, running);
        }
        if calls.end() {
            struck += 1;
            herd.require_right();
        } else {
            herd.verify_whole();
        }
        running = herd.restart(&[]);
        number += 1;
    }
    assert!(struck > 0, "every checkpoint had fewer calls than the strikes wait for");
    kill_all(&sandbox, running);
}

#[test]
fn the_program_before_any_call_of_a_checkpoint() {
    the_program_is_killed("killed_program", any, strikes);
}

/// What is gone has no pages, and a kernel may find none, without an error: that is not what the program had.
#[test]
fn the_program_before_the_last_looks_at_its_pages() {
    let last = |_: &str, all: u64| (all.saturating_sub(9).max(1)..=all).collect();
    the_program_is_killed("killed_scanned", scans, last);
}

/// Whoever is killed, and in whichever phase: no phase is left out. What was half written then goes with the next restart.
#[test]
fn ckptbpf_or_the_program_in_each_phase_of_a_checkpoint() {
    let sandbox = sandbox("killed_phases");
    let (mut herd, mut running) = Herd::launch(&sandbox, &[]);
    herd.traced_checkpoint(&running, (any, 0), never(0));
    herd.verify_whole();
    kill_all(&sandbox, running);
    running = herd.restart(&[]);
    let mut half_written = 0;
    for (phase, kind) in OF_A_CHECKPOINT {
        for (deed, spares) in [(itself as fn(i32) -> Deed, true), (children, false)] {
            let ckptbpf = running.outside_pid().expect("it runs");
            let (_, done) = herd.traced_checkpoint(&running, (*kind, 1), deed(ckptbpf));
            assert!(done, "no checkpoint came to {phase}");
            assert!(herd.lives_or_dies() || !spares, "ckptbpf killed in {phase}: the program is gone");
            herd.verify();
            kill_all(&sandbox, running);
            half_written += herd.half_written();
            running = herd.restart(&[]);
            assert_eq!(herd.half_written(), 0, "killed in {phase}: it has left something");
        }
    }
    assert!(half_written > 0, "nobody was killed while writing");
    kill_all(&sandbox, running);
}

/// The same of restarts: what is left lives, as it does while its pages arrive, or is nothing.
#[test]
fn ckptbpf_or_the_program_in_each_phase_of_a_restart() {
    let sandbox = sandbox("killed_restarting");
    let (mut herd, running) = Herd::launch(&sandbox, &[]);
    herd.traced_checkpoint(&running, (any, 0), never(0));
    herd.verify_whole();
    kill_all(&sandbox, running);
    for mode in [&[][..], &["--lazy"]] {
        for (phase, kind) in OF_A_RESTART {
            for deed in [itself, children] {
                let (running, calls) = herd.traced_restart(mode, (*kind, 1), deed);
                sandbox.wait_for("the restart, or its end", SOON, || {
                    running.has_ended() || supervised(&sandbox, &herd.dir) == Some(herd.pid)
                });
                assert!(calls.is_done(), "no restart came to {phase}: {mode:?}, {}", running.stderr());
                herd.goes_on(&running);
                kill_all(&sandbox, running);
                calls.end();
                herd.verify();
            }
        }
        let running = herd.restart(mode);
        kill_all(&sandbox, running);
    }
}

/// Until the program runs, whoever is killed: nothing of it is left, and the directory is as it was.
fn killed_in_a_restart(name: &str, mode: &[&str], deed: fn(i32) -> Deed) {
    let sandbox = sandbox(name);
    let (mut herd, running) = Herd::launch(&sandbox, &[]);
    herd.traced_checkpoint(&running, (any, 0), never(0));
    herd.verify_whole();
    kill_all(&sandbox, running);
    let (running, calls) = herd.traced_restart(mode, (any, 0), never);
    herd.wait_for_supervisor(&running);
    let all = calls.seen();
    assert!(herd.goes_on(&running));
    kill_all(&sandbox, running);
    calls.end();
    let mut died = 0;
    for at in strikes(name, all) {
        let (running, calls) = herd.traced_restart(mode, (any, at), deed);
        sandbox.wait_for("the restart, or its end", SOON, || {
            running.has_ended() || supervised(&sandbox, &herd.dir) == Some(herd.pid)
        });
        died += u64::from(!herd.goes_on(&running));
        kill_all(&sandbox, running);
        calls.end();
        herd.verify_whole();
    }
    assert!(died > 0, "no strike came before the program ran");
    let running = herd.restart(mode);
    kill_all(&sandbox, running);
}

/// SIGSTOP to each process that it traces at that moment, as one to all of a batch job comes.
fn skeletons_stop(pid: i32) -> Deed {
    fn below(pid: i32) -> Vec<i32> {
        children_of(pid).into_iter().flat_map(|child| [vec![child], below(child)].concat()).collect()
    }
    let is_traced = move |child: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        status.contains(&format!("TracerPid:\t{pid}\n"))
    };
    let stop = |child| kill(Pid::from_raw(child), Signal::SIGSTOP).unwrap_or_default();
    Box::new(move || below(pid).into_iter().filter(is_traced).for_each(stop))
}

/// What is not the program yet takes no stop for it, wherever that finds it: in a clone(2), which begins none then.
#[test]
fn skeletons_that_are_stopped_go_on() {
    let sandbox = sandbox("stopped_skeletons");
    let (mut herd, running) = Herd::launch(&sandbox, &[]);
    herd.traced_checkpoint(&running, (any, 0), never(0));
    herd.verify_whole();
    kill_all(&sandbox, running);
    let (running, calls) = herd.traced_restart(&[], (injects, 0), never);
    herd.wait_for_supervisor(&running);
    let all = calls.seen();
    kill_all(&sandbox, running);
    calls.end();
    // An odd number: entries and ends of calls take turns.
    for at in (1..=all).step_by((all as usize / 20) | 1) {
        let (running, calls) = herd.traced_restart(&[], (injects, at), skeletons_stop);
        herd.wait_for_supervisor(&running);
        assert!(calls.is_done(), "no stop came before call {at} of {all}");
        for process in sandbox.ps() {
            let _ = sandbox.kill(process.pid, Signal::SIGCONT as i32);
        }
        assert!(herd.goes_on(&running), "stopped before call {at} of {all}: the program is gone");
        kill_all(&sandbox, running);
        calls.end();
    }
}

#[test]
fn ckptbpf_before_any_call_of_an_eager_restart() {
    killed_in_a_restart("killed_eager", &[], itself);
}

#[test]
fn ckptbpf_before_any_call_of_a_lazy_restart() {
    killed_in_a_restart("killed_lazy", &["--lazy"], itself);
}

#[test]
fn the_program_before_any_call_of_an_eager_restart() {
    killed_in_a_restart("killed_skeletons", &[], children);
}

#[test]
fn the_program_before_any_call_of_a_lazy_restart() {
    killed_in_a_restart("killed_lazy_skeletons", &["--lazy"], children);
}

#[test]
fn the_guardian_before_any_call_of_a_lazy_restart() {
    killed_in_a_restart("killed_guardian", &["--lazy"], guardian);
}

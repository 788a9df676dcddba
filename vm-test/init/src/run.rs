//! One test after the other, each in a session of its own and for a limited time.

use crate::plan::{Plan, Test};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Where tests say what they have left out; see `ckpt_tests::skip`.
const SKIPS: &str = "/run/vm-test-skips";
/// What no test takes, not even on an emulated processor.
const LIMIT: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

pub fn all(plan: &Plan) -> Result<Counts> {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block()?;
    let signals = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut counts = Counts::default();
    for test in &plan.tests {
        println!("VM-TEST began {}", test.name);
        let begin = Instant::now();
        let outcome = match one(test, &plan.environment, &signals) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        let took = begin.elapsed().as_secs_f32();
        match outcome {
            Outcome::Passed => {
                counts.passed += 1;
                println!("VM-TEST ok {} {took:.1} s", test.name);
            }
            Outcome::Skipped(reason) => {
                counts.skipped += 1;
                println!("VM-TEST skipped {} {took:.1} s: {reason}", test.name);
            }
            Outcome::Failed(reason) => {
                counts.failed += 1;
                println!("VM-TEST failed {} {took:.1} s: {reason}", test.name);
            }
        }
    }
    Ok(counts)
}

/// Becomes it; why it could not.
pub fn instead(test: &Test, environment: &[(String, String)]) -> anyhow::Error {
    let Some((program, arguments)) = test.words.split_first() else { return anyhow::anyhow!("no program") };
    let error = Command::new(program).args(arguments).envs(environment.iter().cloned()).exec();
    anyhow::Error::from(error).context(program.clone())
}

fn one(test: &Test, environment: &[(String, String)], signals: &SignalFd) -> Result<Outcome> {
    fs::write(SKIPS, "")?;
    let (program, arguments) = test.words.split_first().context("a test without a program")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().cloned()).env("CKPTBPF_SKIP_FILE", SKIPS);
    command.process_group(0);
    let child = command.spawn().with_context(|| program.clone())?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = reap(child)? {
            break status;
        }
        let Some(left) = end.checked_duration_since(Instant::now()) else {
            // Its box dies with it.
            kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL)?;
            return Ok(Outcome::Failed(format!("no end within {} s", LIMIT.as_secs())));
        };
        wait(signals, left)?;
    };
    Ok(match status {
        WaitStatus::Exited(_, 0) => skipped().map_or(Outcome::Passed, Outcome::Skipped),
        WaitStatus::Exited(_, code) => Outcome::Failed(format!("exit status {code}")),
        WaitStatus::Signaled(_, signal, _) => Outcome::Failed(format!("ended by {signal}")),
        other => Outcome::Failed(format!("{other:?}")),
    })
}

/// Until a child has ended, or the time is over.
fn wait(signals: &SignalFd, at_most: Duration) -> Result<()> {
    let timeout = PollTimeout::try_from(at_most.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    while signals.read_signal()?.is_some() {}
    Ok(())
}

/// Takes in whoever has ended, orphans too, until it is the test itself.
fn reap(child: Pid) -> Result<Option<WaitStatus>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(status) if status.pid() == Some(child) => return Ok(Some(status)),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Why the test did not run, if it says so.
fn skipped() -> Option<String> {
    let text = fs::read_to_string(SKIPS).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("SKIPPED-TEST "))?;
    Some(line.split_once(": ").map_or(line, |(_, reason)| reason).to_owned())
}

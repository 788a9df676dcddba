//! `slurm run`: the one line in a job script.
//!
//! ```text
//! environment ─▶ place: which job, and where its checkpoints are
//!                decide: launch, or restart from where, and whether it is the program that is asked for
//!                        (ask: squeue ─▶ left, where another job has written there)
//!   ┌─ clock, a process beside: left ─▶ plan (costs) ─▶ the checkpoint's signal, in time
//!   ├─ launch │ restart, as ever; with a daemon by a worker, which is asked for just that and knows of no Slurm
//!   ▼
//! again: stopped with a checkpoint ─▶ scontrol requeue, unless the program had no time to run (costs, plan)
//! ```
//! place, left, plan and what decide and again go by are pure. Slurm is asked by its own commands, in the job and by its user: a worker
//! runs no program, as its user could take that over, and it is outside of the job's limits.

mod again;
mod ask;
mod clock;
mod command;
pub mod costs;
pub mod decide;
pub mod left;
pub mod place;
mod plan;

use super::directory::JobDir;
use super::ended::{CHECKPOINTED, Ended};
use super::options::{JobOptions, SlurmOptions};
use super::terminal::say;
use super::way::Way;
use super::{launch, restart, signals};
use crate::task::outside;
use anyhow::Context;
use clock::{Clock, Watched};
use costs::Spent;
use decide::{Decided, Todo};
use left::Left;
use nix::unistd::Pid;
use place::Job;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Slurm's commands are run beside the program in jobs with more memory than this, in MB.
const ROOM: u64 = 64;

/// Runs or restarts the job's program, and queues the job again if it was stopped with a checkpoint; what to exit with. `way` is
/// asked for that of what is to be done.
///
/// # Errors
/// As of launch and restart; or this is no job.
pub fn run(options: &SlurmOptions, way: &dyn Fn(&Todo) -> Way) -> anyhow::Result<u8> {
    let begun = since_1970();
    let job = Job::of(|name| std::env::var_os(name))?;
    let signal = options.job.ckpt_signal.unwrap_or(libc::SIGUSR1);
    let ends = JobOptions {
        ckpt_signal: Some(signal),
        exit_after_ckpt: true,
        term_ends: true,
        ..options.job.clone()
    };
    let options = SlurmOptions { job: ends, ..options.clone() };
    // What Slurm sends until the program is there would end this process.
    signals::hold().context("cannot keep signals")?;
    warn_of_a_shell(&job);
    let Decided { todo, dir, epoch } = decide::decide(&options, &job)?;
    if todo == Todo::Nothing {
        say("the program has ended with 0 before the job was queued again: nothing is left to do");
        return Ok(0);
    }
    let clock = start_clock(&job, &dir, epoch, signal);
    let way = way(&todo);
    let ended = match &todo {
        Todo::Launch(options) => launch(options, &way),
        Todo::Restart(options) => restart(options, &way),
        Todo::Nothing => Ok(Ended::Exited(0)),
    };
    if outside::is_noted() {
        // This is the supervisor in the program's own namespace: the rest is for the ckptbpf outside, whose child the clock is.
        std::mem::forget(clock);
        return Ok(ended?.exit_status());
    }
    drop(clock);
    let status = ended?.exit_status();
    // Both: a run that has come to nothing leaves the record of the one before.
    if status == CHECKPOINTED && is_checkpointed(&dir, epoch) {
        return Ok(again::queue_again(&job, options.requeue, spent(&dir, begun).as_ref()));
    }
    Ok(status)
}

/// Whether the run after `epoch` was ended with its last checkpoint. A program's own status may be 85, too; the record tells.
fn is_checkpointed(dir: &Path, epoch: u64) -> bool {
    let record = decide::record_of(dir);
    let record = record.inspect_err(|error| log::warn!("how the job has ended is not known: {error}"));
    record.ok().flatten().is_some_and(|record| record.epoch > epoch && record.checkpointed)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// How the run that has `begun` then has spent its time; none if it was a launch, or nobody knows.
fn spent(dir: &Path, begun: Duration) -> Option<Spent> {
    let read = || -> anyhow::Result<Option<Spent>> {
        let dir = JobDir::open(dir, &decide::caller()?)?;
        Ok(costs::spent(&dir, begun, since_1970())?)
    };
    read().unwrap_or_else(|error| {
        log::warn!("how the job has spent its time is not known: {error}");
        None
    })
}

/// The clock; without one there are the checkpoints of the interval, and what Slurm's signals ask for.
fn start_clock(job: &Job, dir: &Path, epoch: u64, signal: i32) -> Option<Clock> {
    let without = |error: &dyn std::error::Error| {
        log::warn!("no checkpoint is taken in time before the job's limit: {error}");
    };
    let ids = decide::caller().inspect_err(|error| without(error)).ok()?;
    let may_ask = job.megabytes.is_none_or(|megabytes| megabytes > ROOM);
    let watched = Watched {
        job: job.told_as(),
        dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()),
        epoch,
        ids,
        signal,
        apart: plan::apart(job.task.unwrap_or(0)),
        left: left_of(job, may_ask).map(|left| (left, Instant::now())),
        may_ask,
    };
    Clock::start(&watched).inspect_err(|error| without(error)).ok()
}

/// How long the job has: by its environment, else as Slurm tells. The clock asks for itself if it may, and nobody waits for the answer.
fn left_of(job: &Job, may_ask: bool) -> Option<Left> {
    if let Some(end) = job.end {
        return Some(Left::of_end(end, since_1970().as_secs()));
    }
    if may_ask {
        return None;
    }
    let told = ask::queue(&job.told_as());
    let told = told.inspect_err(|error| log::warn!("how long the job has is not known: {error}"));
    told.ok().flatten().and_then(|told| told.left)
}

/// Slurm signals the process that it has started: a shell that waits for ckptbpf is ended by that, and ckptbpf with it.
fn warn_of_a_shell(job: &Job) {
    if job.first_process.is_some_and(|pid| pid != Pid::this().as_raw().unsigned_abs()) {
        log::warn!(
            "Slurm signals the script's shell, which does not pass it on: write `exec ckptbpf slurm run …`, or do \
             without --signal=B:…"
        );
    }
}

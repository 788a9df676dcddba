//! The clock of a job: a process beside ckptbpf that asks for the last checkpoint in time.
//!
//! ```text
//!  left ─▶ plan ─▶ wait │ try: a checkpoint by the control socket │ last: the checkpoint's signal to ckptbpf, again and again
//!   ▲─────── squeue, every few minutes and before the last ───────┘
//! ```
//! ckptbpf in the job may be the supervisor, the front of a worker, or in front of a supervisor in a namespace. The signal means the
//! same to each, and is all that they have to do with the clock. In a process of its own it may wait for commands and for disks
//! without holding anybody up. It is forked before there is a program, and dies with ckptbpf.

use super::left::Left;
use super::plan::{self, Step};
use super::{ask, costs};
use crate::job::directory::JobDir;
use crate::job::ended::FAILED;
use crate::job::record::JobRecord;
use crate::job::registry::Target;
use crate::job::request::{self, Taker};
use crate::sys::ids::FsIds;
use crate::sys::{clone, pidfd, spawn, wait};
use nix::sys::prctl;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where Slurm has not told how long the job has, it is asked again after this.
const NOT_TOLD: Duration = Duration::from_secs(30);

/// Between two looks for a supervisor that can be asked: a restart may take a while.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What it goes by.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The job ([`super::place::Job::told_as`]).
    pub job: String,
    /// Its directory, from the root.
    pub dir: PathBuf,
    /// That of its writer before this run.
    pub epoch: u64,
    /// Whose files are read there.
    pub ids: FsIds,
    /// By which ckptbpf is asked for the last checkpoint.
    pub signal: i32,
    /// How much later than the first task of its step it begins, and how much earlier it is done ([`super::plan::apart`]).
    pub apart: Duration,
    /// What was left, and when that was said; none: it is to be asked for.
    pub left: Option<(Left, Instant)>,
    /// Whether there is memory for commands beside the program.
    pub may_ask: bool,
}

/// The process; it ends when this is dropped.
#[derive(Debug)]
pub struct Clock {
    pid: Pid,
    process: OwnedFd,
}

impl Clock {
    /// Starts it. Only while this process has one thread.
    ///
    /// # Errors
    /// It cannot be forked.
    pub fn start(watched: &Watched) -> io::Result<Self> {
        let keeper = Pid::this();
        match clone::fork(0, None)? {
            Some(pid) => Ok(Self { pid, process: pidfd::open(pid)? }),
            None => {
                clone::end_with(keeper);
                tick(watched, keeper)
            }
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // It may have been reaped, and its number be another's.
        let _ = pidfd::send_signal(self.process.as_fd(), libc::SIGKILL);
        let _ = wait::for_end(self.pid);
    }
}

/// The clock's life, with the signals blocked that ckptbpf waits for.
fn tick(watched: &Watched, keeper: Pid) -> ! {
    let _ = prctl::set_name(c"ckptbpf-clock");
    if let_go().is_err() {
        std::process::exit(FAILED.into());
    }
    sleep(watched.apart);
    let mut left = watched.left.or_else(|| ask_again(watched));
    let (mut had, mut asked, mut has_tried, mut has_warned) = (Duration::ZERO, Instant::now(), false, false);
    loop {
        if let Some((Left::Time(told), _)) = left {
            had = had.max(told);
        }
        let cost = cost(watched).or(has_tried.then_some(Duration::ZERO));
        let of_ours = |(left, then): (Left, Instant)| left.after(then.elapsed()).after(watched.apart);
        let now = left.map(of_ours);
        match now.map_or(Step::Wait(NOT_TOLD), |left| plan::step(left, had, cost)) {
            Step::Wait(time) => {
                sleep(time);
                if asked.elapsed() >= plan::ASK_AGAIN || left.is_none() {
                    left = ask_again(watched).or(left);
                    asked = Instant::now();
                }
            }
            Step::Try if try_one(watched) => has_tried = true,
            Step::Try => sleep(LOOK_AGAIN),
            Step::Last => {
                // The limit may be another one by now.
                let newest = ask_again(watched).or(left);
                let is_time = newest.is_some_and(|left| plan::step(of_ours(left), had, cost) == Step::Last);
                (left, asked) = (newest, Instant::now());
                if is_time {
                    if !has_warned && !program_runs(watched) {
                        has_warned = true;
                        log::warn!(
                            "the job's time is nearly over, and its program does not run yet: a restart that takes so \
                             long needs a job with more time (--time), or --lazy"
                        );
                    }
                    wait::send(keeper, watched.signal);
                    sleep(plan::again(cost.unwrap_or_default()));
                }
            }
        }
    }
}

/// It keeps no mount busy, and no pipe open but the one by which it is heard.
fn let_go() -> io::Result<()> {
    nix::unistd::chdir("/")?;
    let nothing = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    (0..2).try_for_each(|stream| pidfd::duplicate_to_standard(&nothing, stream))?;
    drop(nothing);
    spawn::close_inherited()
}

/// Where nobody knows, it does.
fn program_runs(watched: &Watched) -> bool {
    let record = JobDir::open(&watched.dir, &watched.ids).and_then(|dir| dir.read_record());
    record.ok().flatten().is_none_or(|record| is_of_running(&record, watched.epoch))
}

/// Whether a record tells of a program that runs: of one whose writer is not that of `epoch` any more, and has begun.
fn is_of_running(record: &JobRecord, epoch: u64) -> bool {
    record.epoch > epoch && !record.starting
}

/// What the slowest of the last checkpoints took.
fn cost(watched: &Watched) -> Option<Duration> {
    let dir = JobDir::open(&watched.dir, &watched.ids).ok()?;
    costs::slowest(&dir).unwrap_or_else(|error| {
        log::warn!("what checkpoints cost is not known: {error}");
        None
    })
}

fn ask_again(watched: &Watched) -> Option<(Left, Instant)> {
    if !watched.may_ask {
        return None;
    }
    let told = ask::queue(&watched.job);
    let told = told.inspect_err(|error| log::warn!("how long the job has is not known: {error}"));
    told.ok().flatten().and_then(|told| told.left).map(|left| (left, Instant::now()))
}

/// A checkpoint after which the program goes on; false where nobody can be asked. Why there is none is said by who would have taken it.
fn try_one(watched: &Watched) -> bool {
    let target = Target::Dir(watched.dir.clone());
    let taker = request::taker(&request::jobs(&target), &target, None, false);
    let Ok(Taker::Supervisor(live)) = taker else { return false };
    let _ = request::ask(&live, false);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_once_its_run_has_written_so() {
        let record = |epoch: u64, starting: bool| -> JobRecord {
            let text = serde_json::json!({"job": "j", "epoch": epoch, "host": "a", "boot_id": "b", "machine": null, "options": {},
                "supervisor": {"pid": 1, "start_time": 0}, "argv": [], "starting": starting});
            serde_json::from_value(text).unwrap()
        };
        assert!(!is_of_running(&record(4, false), 4), "of the run before");
        assert!(!is_of_running(&record(5, true), 4));
        assert!(is_of_running(&record(5, false), 4));
    }
}

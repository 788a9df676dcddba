//! The right to write a job directory, taken once and checked at every commit.
//!
//! ```text
//! claim: lock ─▶ read job.json ─▶ judge (job.json against this machine) ─▶ epoch + 1 into job.json ─▶ what writers
//!        before have left half written goes ─▶ Lease
//! commit: Lease::check ─▶ rename          end: Lease::end writes the exit status; dropping it frees the lock
//! ```
//! Two fences: the lock (flock(2)) keeps a second writer on this machine out, and on network file systems that
//! pass locks on; the epoch in job.json fences off a writer that the lock did not reach: it finds another
//! writer's epoch at its next commit and stops committing.
//!
//! flock belongs to the open file description: a process that is forked (not executed) while the lease exists
//! must close its copy, or the directory stays locked after the supervisor has died.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use crate::image;
use crate::rebuild::taken;

use super::directory::{DirectoryError, JobDir};
use super::ended::{self, Ended};
use super::process::ProcessId;
use super::record::{Here, JobRecord, RecordedOptions, Standing, standing};
use super::slurm::place::SlurmRun;

/// Why a directory is claimed; decides what is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A new program; refuses checkpoints of an earlier one, unless they are moved aside (`--new`).
    Launch {
        /// Move earlier generations to `DIR/old-N/`.
        new: bool,
    },
    /// The same program again; refused while it runs.
    Restart,
    /// This program runs and shall be supervised: it is the directory's own, or the directory holds no checkpoints.
    Attach(i32),
    /// Merging and deleting while no job runs.
    Prune,
}

/// What the new writer says of itself.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Why.
    pub purpose: Purpose,
    /// `--take-over`.
    pub take_over: bool,
    /// The options this run goes by; see [`RecordedOptions::merged`].
    pub options: RecordedOptions,
    /// Program and arguments, readable; empty: as recorded.
    pub argv: Vec<String>,
}

/// A directory that is this process's to write.
#[derive(Debug)]
pub struct Claimed {
    /// The right to write.
    pub lease: Lease,
    /// The record of the writer before.
    pub previous: Option<JobRecord>,
    /// What the person should be told: one line each.
    pub notes: Vec<String>,
    /// Where `--new` moved the earlier generations.
    pub moved: Option<PathBuf>,
    /// Bytes of half-written generations that were removed.
    pub freed: u64,
}

/// The right to write a directory. Shared between threads; the lock goes when the last one drops it.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Held>);

#[derive(Debug)]
struct Held {
    dir: Arc<JobDir>,
    record: Mutex<JobRecord>,
    /// Of the writer before, unless that has been moved aside.
    before: Option<JobRecord>,
    // Never read: closing it frees the lock.
    _lock: File,
}

/// Between two looks at a lock whose holder has been killed.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Whether a program runs that nothing is about to end.
fn goes_on(program: ProcessId) -> bool {
    program.goes_on(taken::WAIT)
}

impl Drop for Held {
    /// Where nothing of the job has come to run, or is left, the directory does not say that something may. What runs on is
    /// spoken of.
    fn drop(&mut self) {
        let own = self.record.get_mut().unwrap_or_else(PoisonError::into_inner);
        let is_ours =
            || self.dir.read_record().is_ok_and(|found| found.is_some_and(|found| same_writer(&found, own)));
        if own.ended.is_some() || own.program.is_some_and(ProcessId::runs) || !is_ours() {
            return;
        }
        let over = match (own.program, self.before.take()) {
            // But for the epoch: those of a directory only grow.
            (None, Some(before)) => JobRecord { epoch: own.epoch, ..before },
            _ => JobRecord { ended: Some(ended::FAILED), starting: false, ..own.clone() },
        };
        if let Err(error) = self.dir.write_record(&over) {
            log::warn!("{error}");
        }
    }
}

impl Lease {
    /// Takes the directory, or says who has it.
    pub fn claim(dir: &Arc<JobDir>, claim: Claim) -> Result<Claimed, DirectoryError> {
        let here = Here::current();
        let lock = lock(dir)?;
        let previous = dir.read_record()?;
        let found = previous.as_ref().map(|record| standing(record, &here, goes_on));
        let continues = match (claim.purpose, &found) {
            (Purpose::Restart | Purpose::Prune, _) => true,
            (Purpose::Attach(pid), Some(Standing::Runs(runs))) => *runs == pid,
            _ => false,
        };
        let mut notes = Vec::new();
        if let (Some(record), Some(found)) = (&previous, &found) {
            match found {
                Standing::Runs(_) if continues && matches!(claim.purpose, Purpose::Attach(_)) => {}
                Standing::Elsewhere if claim.take_over => notes.push(taken_over(dir, record, &claim)),
                other => notes.extend(report(dir, record, other)?),
            }
        }
        let mut moved = None;
        if claim.purpose == (Purpose::Launch { new: true }) {
            moved = dir.move_aside()?;
        }
        if !continues {
            dir.refuse_checkpoints()?;
        }
        let record = next_record(dir, previous.as_ref(), continues, here, claim)?;
        dir.write_record(&record)?;
        // Not before that: whoever still writes and is not kept out by the lock can no longer commit now.
        let freed = clean(dir).unwrap_or_else(|error| {
            notes.push(format!("what a killed ckptbpf has left half written stays: {error}"));
            0
        });
        let before = previous.clone().filter(|_| moved.is_none());
        let held = Held { dir: dir.clone(), record: Mutex::new(record), before, _lock: lock };
        Ok(Claimed { lease: Self(Arc::new(held)), previous, notes, moved, freed })
    }

    /// For a directory that is only read (a restart with `-d` elsewhere): refused while its job runs here, and a
    /// line for the person where that cannot be known.
    pub fn look(dir: &JobDir) -> Result<Option<String>, DirectoryError> {
        let Some(record) = dir.read_record()? else { return Ok(None) };
        match report(dir, &record, &standing(&record, &Here::current(), goes_on)) {
            Err(DirectoryError::Elsewhere { host, .. }) => {
                Ok(Some(format!("the job of {} was running on host {host}, and may still be", dir.shown())))
            }
            other => other,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Arc<JobDir> {
        &self.0.dir
    }

    /// What job.json says of this run.
    pub fn record(&self) -> JobRecord {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether job.json is still this writer's. Call it right before each commit; an error means: do not commit.
    pub fn check(&self) -> Result<(), DirectoryError> {
        let own = self.record();
        match self.0.dir.read_record()? {
            Some(found) if same_writer(&found, &own) => Ok(()),
            Some(found) => {
                let by = format!(
                    "pid {} on host {} (epoch {})",
                    found.supervisor.pid, found.here.host, found.epoch
                );
                Err(DirectoryError::LeaseLost { path: self.0.dir.shown(), by })
            }
            None => Err(DirectoryError::LeaseLost {
                path: self.0.dir.shown(),
                by: "somebody who removed job.json".into(),
            }),
        }
    }

    /// Records the program's first process, as soon as there is something that will run, and those that a restart has made beside.
    pub fn starting(&self, program: ProcessId, restarted: Vec<ProcessId>) -> Result<(), DirectoryError> {
        self.update(|record| {
            record.program = Some(program);
            record.restarted = restarted;
        })
    }

    /// Records the program's first process and the control socket, once both are there.
    pub fn started(&self, program: ProcessId, socket: Option<PathBuf>) -> Result<(), DirectoryError> {
        self.update(|record| {
            record.program = Some(program);
            record.starting = false;
            record.socket = socket;
        })
    }

    /// Records that the job is over, with ckptbpf's exit status: from now on any host may restart it.
    pub fn end(&self, status: u8) -> Result<(), DirectoryError> {
        self.update(|record| record.ended = Some(status))
    }

    /// The same, and whether it was its last checkpoint that has ended it.
    pub fn end_as(&self, ended: Ended) -> Result<(), DirectoryError> {
        self.update(|record| {
            record.ended = Some(ended.exit_status());
            record.checkpointed = ended == Ended::Checkpointed;
        })
    }

    fn update(&self, change: impl FnOnce(&mut JobRecord)) -> Result<(), DirectoryError> {
        // Known here, whatever the directory says.
        let record = {
            let mut record = self.0.record.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut record);
            record.clone()
        };
        self.check()?;
        self.0.dir.write_record(&record)
    }
}

/// What is to be said of the last job, or why it forbids another.
fn report(dir: &JobDir, record: &JobRecord, found: &Standing) -> Result<Option<String>, DirectoryError> {
    let Here { host, boot_id, .. } = record.here.clone();
    let path = dir.shown();
    match *found {
        Standing::Over => Ok(None),
        Standing::Rebooted => {
            Ok(Some(format!("the last run of {path} ended when this machine went down (boot {boot_id})")))
        }
        Standing::Runs(pid) => Err(DirectoryError::StillRuns { path, pid }),
        Standing::Elsewhere => Err(DirectoryError::Elsewhere { path, host, boot_id }),
    }
}

/// What is to be said of a job that may run on another host, and has no directory any more. Where the same program runs here, nobody
/// keeps the two from each other's files.
fn taken_over(dir: &JobDir, record: &JobRecord, claim: &Claim) -> String {
    let Here { host, boot_id, .. } = &record.here;
    let shown = dir.shown();
    let more = match claim.argv == record.argv {
        true => ", and both write to the same files: end it there",
        false => "",
    };
    format!(
        "taking {shown} over from host {host} (boot {boot_id}); if its job still runs there, it can commit no more \
         checkpoints{more}"
    )
}

/// Removes half-written generations of writers that are gone: up to the program's whole memory each.
fn clean(dir: &JobDir) -> anyhow::Result<u64> {
    let _as = dir.assume()?;
    Ok(image::clean_temporaries(&dir.proc_path())?)
}

/// The identity that the newest readable generation has, where job.json is lost: deltas must bear the same.
pub fn job_of_generations(dir: &JobDir) -> Option<String> {
    let listed = {
        let _as = dir.assume().ok()?;
        image::list(&dir.proc_path()).ok()?
    };
    let job = listed
        .iter()
        .rev()
        .find_map(|one| one.header.as_ref())
        .map(|header| u128::from_be_bytes(header.job))?;
    let hex = format!("{job:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Some([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

fn same_writer(a: &JobRecord, b: &JobRecord) -> bool {
    a.job == b.job && a.epoch == b.epoch && a.here == b.here && a.supervisor == b.supervisor
}

/// The record of the writer after `previous`. A new program is a new job, yet epochs of a directory only grow.
fn next_record(
    dir: &JobDir,
    previous: Option<&JobRecord>,
    continues: bool,
    here: Here,
    claim: Claim,
) -> Result<JobRecord, DirectoryError> {
    let look = |error| dir.io("find out about this process for job.json of it", error);
    let kept = previous.filter(|_| continues);
    let known = kept.map(|record| record.job.clone());
    let job = match known.or_else(|| job_of_generations(dir).filter(|_| continues)) {
        Some(job) => job,
        None => std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(look)?.trim().to_owned(),
    };
    let argv = match kept {
        Some(record) if claim.argv.is_empty() => record.argv.clone(),
        _ => claim.argv,
    };
    let options = match kept {
        Some(record) if claim.purpose == Purpose::Prune => record.options.clone(),
        _ => claim.options,
    };
    // Whoever prunes says again what was said before.
    let told = kept.filter(|_| claim.purpose == Purpose::Prune);
    Ok(JobRecord {
        job,
        epoch: previous.map_or(1, |record| record.epoch.saturating_add(1)),
        here,
        supervisor: ProcessId::current().map_err(look)?,
        program: None,
        restarted: Vec::new(),
        starting: claim.purpose != Purpose::Prune,
        ended: None,
        checkpointed: told.is_some_and(|record| record.checkpointed),
        slurm: told.map_or_else(SlurmRun::here, |record| record.slurm.clone()),
        socket: None,
        options,
        argv,
    })
}

fn lock(dir: &JobDir) -> Result<File, DirectoryError> {
    let file = match dir.open_file("lock", OFlag::O_RDWR | OFlag::O_CREAT) {
        Err(DirectoryError::Io { source, .. })
            if matches!(source.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) =>
        {
            return Err(DirectoryError::ReadOnly { path: dir.shown(), source });
        }
        other => other?,
    };
    let until = Instant::now() + taken::WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(DirectoryError::unlocked(dir.path(), error));
            }
        }
        let record = dir.read_record().ok().flatten();
        // Of a ckptbpf that was killed, a guardian that has still to hear of it may have the lock, or what is left of its memory.
        let is_over = record.as_ref().is_some_and(|by| by.here == Here::current() && !by.supervisor.runs());
        if !is_over || Instant::now() > until {
            let by = record.map_or_else(
                || "another ckptbpf".to_owned(),
                |by| format!("ckptbpf (pid {} on host {})", by.supervisor.pid, by.here.host),
            );
            return Err(DirectoryError::Busy { path: dir.shown(), by });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;

//! One checkpoint from beginning to end, on a thread of its own; what needs ptrace is sent to the tracer.
//!
//! ```text
//!  arm new address spaces (short freeze, once) ─▶ rounds: scan + re-arm, copy, compress, write ─▶
//!  freeze: last scan, copy of the residue, everything else ─▶ thaw ─▶ write the rest ─▶ commit ─▶ merge
//! ```
//! A failure at any point loses no dirty page: spaces forget what was dirty only after the commit.

use super::control::CheckpointDone;
use super::directory::JobDir;
use super::ended::Ended;
use super::events::{Event, EventLog};
use super::files;
use super::in_freeze::{self, Frozen, Tracked};
use super::lease::Lease;
use super::pointer::keep;
use super::retention;
use super::sync;
use super::tracer::Tracer;
use crate::freeze::{FrozenTree, tree};
use crate::image::{self, Codec, GenerationId, GenerationWriter, Header, Kind, Summary};
use crate::memory::map_count;
use crate::page::Lost;
use crate::phase::Phase;
use crate::record::{BadImage, Image, Process};
use crate::refusal::Refusal;
use crate::sys::bpf;
use crate::sys::ids::Assumed;
use crate::sys::wait;
use crate::task::iterators::Kernel;
use crate::track::arm;
use crate::track::backend::Backend;
use crate::track::reconcile::Reconcile;
use crate::track::space::Space;
use nix::unistd::Pid;
use prost::Message;
use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Threads that compress.
const WORKERS: usize = 2;

/// Why a checkpoint was not made; the program goes on.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Page(#[from] Lost),
    #[error(transparent)]
    Image(#[from] image::ImageError),
    #[error(transparent)]
    Metadata(#[from] BadImage),
    #[error("checkpoint {0}, without which this one could not be restarted from, is no longer there")]
    Ancestor(GenerationId),
    #[error(transparent)]
    Unwritten(#[from] sync::Unwritten),
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
    #[error("the supervisor is gone")]
    NoTracer,
    #[error(
        "ckptbpf itself has failed at an earlier one; the program goes on without: restart it from its last checkpoint"
    )]
    NoMaker,
}

/// How the program goes on after a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Continue,
    /// Checkpoint and end are one instant: it stays stopped until the commit, then it is killed.
    Kill,
}

/// A program that stands still until its checkpoint is there: it goes on, by the hand of the tracer, whatever becomes of that.
struct Held {
    tree: Option<FrozenTree>,
    tracer: Tracer,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(tree) = self.tree.take() {
            self.tracer.run(move || tree.thaw());
        }
    }
}

/// Everything that checkpoints of one job carry from one to the next.
pub struct Checkpointer {
    pub root: Pid,
    /// How the root ended, once the supervisor has reaped it.
    pub ended: Arc<OnceLock<Ended>>,
    pub lease: Lease,
    pub codec: Codec,
    pub backend: Backend,
    /// How many restartable generations stay.
    pub keep: usize,
    pub events: Option<EventLog>,
    pub program: String,
    /// The newest committed generation of this run, or the one it was restarted from.
    pub parent: Option<GenerationId>,
    pub tracked: Arc<Mutex<Tracked>>,
    pub kernel: Kernel,
    /// The log of write faults beside the scans.
    pub reconcile: Reconcile,
    /// How the eBPF programs are loaded.
    pub bpf: bpf::Options,
    /// Processes that were there at the last checkpoint: those that outlive one are tracked.
    pub seen: HashSet<Pid>,
    /// Of this program none was made yet, or the last one was refused: before anything is copied and written it is looked whether
    /// the next one would be.
    pub is_doubtful: bool,
}

/// A checkpoint that is being made.
struct Making {
    begun: Instant,
    id: GenerationId,
    parent: Option<GenerationId>,
}

impl Checkpointer {
    /// Makes one checkpoint. On an error everything dirty stays dirty, and the program runs on.
    pub fn run(&mut self, tracer: &Tracer, after: After) -> Result<CheckpointDone, CheckpointError> {
        let begun = Instant::now();
        let result = self.make(tracer, after, begun);
        self.kernel.look_at_waits(self.root);
        self.reconcile.detach();
        self.is_doubtful = match &result {
            Ok(_) => false,
            Err(CheckpointError::Refused(_)) => true,
            Err(_) => self.is_doubtful,
        };
        let event = match &result {
            Ok(done) => Event::named("checkpoint", begun.elapsed())
                .count("id", done.id)
                .count("pages", done.pages)
                .count("bytes_stored", done.bytes_stored),
            Err(error) => Event::named("error", begun.elapsed()).text("why", told(error)),
        };
        self.event(&event);
        result
    }

    fn make(
        &mut self,
        tracer: &Tracer,
        after: After,
        begun: Instant,
    ) -> Result<CheckpointDone, CheckpointError> {
        self.kernel.load(self.bpf);
        self.renew_spaces(tracer)?;
        if self.is_doubtful {
            let (root, tracked, kernel) = (self.root, self.tracked.clone(), self.kernel.clone());
            let stood = tracer
                .run(move || in_freeze::look(root, &tracked, &kernel))
                .ok_or(CheckpointError::NoTracer)??;
            self.kernel.look_at_waits(self.root);
            self.event(&Event::named("look", stood));
        }
        let ends_bytes = self.read_ends();
        let dir = self.lease.dir().clone();
        let parent = self.parent_of_next(&dir)?;
        let pager = self.tracked().pager.clone();
        if let Some(pager) = pager {
            if parent.is_none() {
                pager.inherit_nothing();
            }
            pager.prepare()?;
        }
        let _as_owner = as_owner(&dir)?;
        let path = dir.proc_path();
        let id = image::next_id(&path, self.parent)?;
        if parent.is_none() {
            self.tracked().begin_full();
        }
        let features = Vec::new();
        let job = job_bytes(&self.lease.record().job);
        let header = Header { id, parent, job, features, created_unix_ns: unix_ns() };
        let mut writer = GenerationWriter::create(&path, header, self.codec, WORKERS)?;
        let rounds = self.rounds(tracer, &mut writer)?;
        self.event(
            &Event::phase(Phase::Track, begun.elapsed())
                .count("id", id.0)
                .count("rounds", rounds)
                .count("ends_bytes", ends_bytes),
        );
        let mut frozen = self.freeze(tracer, after, &mut writer)?;
        let tracked = self.tracked.clone();
        self.reconcile.thawed(&mut lock(&tracked).spaces);
        let mut held = Held { tree: frozen.held.take(), tracer: tracer.clone() };
        let result = self.write(writer, &frozen, &Making { begun, id, parent });
        let killed = after == After::Kill && result.is_ok();
        if let Some(tree) = held.tree.take_if(|_| killed) {
            tracer.run(move || tree.kill());
        }
        drop(held);
        result.map(|done| CheckpointDone { killed, ..done })
    }

    /// What the next generation is a delta of; nothing where it is to be full.
    fn parent_of_next(&self, dir: &JobDir) -> Result<Option<GenerationId>, CheckpointError> {
        let is_full = self.backend == Backend::Full || self.tracked().spaces.iter().all(|s| !s.is_saved());
        let Some(parent) = self.parent.filter(|_| !is_full) else { return Ok(None) };
        let _as_owner = as_owner(dir)?;
        let gone = image::missing(&dir.proc_path(), parent);
        if let Some(gone) = gone {
            log::warn!(
                "checkpoint {gone} is no longer in {}: no later one can be restarted from without it, and the next one is full",
                dir.path().display()
            );
        }
        Ok(gone.is_none().then_some(parent))
    }

    /// Merges and deletes old generations when it pays, for as long as `goes_on`; a failure costs only room.
    pub fn tidy(&mut self, goes_on: &dyn Fn() -> bool) {
        let begun = Instant::now();
        match self.prune(goes_on) {
            Ok(Some(report)) => {
                let event = Event::named("prune", begun.elapsed());
                self.event(
                    &event
                        .count("merged", u64::from(report.merged.is_some()))
                        .count("deleted", report.deleted.len() as u64),
                );
            }
            Ok(None) => {}
            Err(error) => log::warn!("old checkpoints stay: {error:#}"),
        }
    }

    fn prune(&self, goes_on: &dyn Fn() -> bool) -> anyhow::Result<Option<image::PruneReport>> {
        let dir = self.lease.dir();
        let _as_owner = dir.assume()?;
        let path = dir.proc_path();
        let mut listed = image::list(&path)?;
        listed.retain(|one| one.complete);
        let stored: Vec<u64> =
            listed.iter().filter_map(|one| one.summary.as_ref()).map(|s| s.bytes_stored).collect();
        if !retention::is_due(&stored, self.keep) {
            return Ok(None);
        }
        let check = || self.lease.check().map_err(|e| e.to_string());
        Ok(Some(image::prune_while(&path, self.keep, (&[], &image::Unsound::new()), check, &|_, _| {
            goes_on()
        })?))
    }

    pub(super) fn tracked(&self) -> MutexGuard<'_, Tracked> {
        lock(&self.tracked)
    }

    fn event(&mut self, event: &Event) {
        if let Some(Err(error)) = self.events.as_mut().map(|log| log.write(event)) {
            log::warn!("{error}");
        }
    }

    /// The ends of files that have not changed since the last freeze; how many bytes that were. Who serves them may not answer: so
    /// without the lock.
    fn read_ends(&self) -> u64 {
        let members: Vec<Pid> = tree::members(self.root).into_iter().map(|m| m.0).collect();
        let mut known = std::mem::take(&mut self.tracked().ends);
        let bytes = known.read_beside(&members);
        self.tracked().ends = known;
        bytes
    }

    /// Drops address spaces that are gone, finds new ones, and has those tracked that have outlived a checkpoint.
    fn renew_spaces(&mut self, tracer: &Tracer) -> Result<(), CheckpointError> {
        let members: Vec<Pid> = tree::members(self.root).into_iter().map(|m| m.0).collect();
        let wanted: Vec<Pid> = {
            let mut tracked = self.tracked();
            tracked.begin();
            tracked.renew(&members);
            if self.backend == Backend::PagemapScan && tracked.pager.is_none() {
                tracked.spaces.iter_mut().for_each(leave_if_crowded);
            }
            let lasts = |s: &&Space| s.pid == self.root || self.seen.contains(&s.pid);
            let lasting = |s: &&Space| s.uffd.is_none() && !s.crowded && lasts(s);
            tracked.spaces.iter().filter(lasting).map(|s| s.pid).collect()
        };
        self.seen = members.into_iter().collect();
        if self.backend == Backend::SoftDirty {
            self.tracked().spaces.iter_mut().for_each(|s| s.soft_dirty = true);
        }
        if self.backend != Backend::PagemapScan || wanted.is_empty() {
            return Ok(());
        }
        let (root, kernel) = (self.root, self.kernel.clone());
        let armed =
            tracer.run(move || arm::arm(root, &wanted, &kernel)).ok_or(CheckpointError::NoTracer)??;
        self.kernel.look_at_waits(self.root);
        let mut tracked = self.tracked();
        for (pid, uffd) in armed {
            match (uffd, tracked.spaces.iter_mut().find(|s| s.pid == pid)) {
                (Ok(uffd), Some(space)) => space.uffd = Some(uffd),
                (Err(error), _) => log::warn!("process {pid} is saved whole each time: {error}"),
                (Ok(_), None) => {}
            }
        }
        Ok(())
    }

    /// Has the tracer freeze the tree; writes what overflows while it is at it.
    fn freeze(
        &mut self,
        tracer: &Tracer,
        after: After,
        writer: &mut GenerationWriter,
    ) -> Result<Frozen, CheckpointError> {
        let (sender, messages) = mpsc::sync_channel(64);
        let (root, tracked, kernel) = (self.root, self.tracked.clone(), self.kernel.clone());
        tracer
            .post(move || in_freeze::run(root, after, &tracked, &kernel, &sender))
            .ok_or(CheckpointError::NoTracer)?;
        let mut written = Ok(());
        loop {
            match messages.recv().map_err(|_| CheckpointError::NoTracer)? {
                in_freeze::Message::Overflow(batch) if written.is_ok() => {
                    written = writer.put_pages(batch.space, batch.first_page, &batch.bytes);
                }
                in_freeze::Message::Overflow(_) => {}
                in_freeze::Message::Done(frozen) => {
                    self.kernel.look_at_waits(self.root);
                    let mut frozen = *frozen;
                    if let Err(error) = written {
                        if let Some(tree) = frozen.as_mut().ok().and_then(|frozen| frozen.held.take()) {
                            tracer.run(move || tree.thaw());
                        }
                        return Err(error.into());
                    }
                    let mut frozen = frozen?;
                    frozen.image.ended = self.root_ended(tracer, &frozen.image);
                    return Ok(frozen);
                }
            }
        }
    }

    /// How the first process ended, if it was not there any more. The supervisor's thread knows: it reaps.
    fn root_ended(&self, tracer: &Tracer, image: &Image) -> Option<i32> {
        let (root, known) = (self.root, self.ended.clone());
        if known.get().is_none() && image.processes.iter().any(|p| p.pid == root.as_raw()) {
            return None;
        }
        let ended = tracer.run(move || {
            known.get().copied().or_else(|| wait::unreaped(root)).or_else(|| wait::of_zombie(root))
        })?;
        ended.map(Ended::to_wait)
    }

    fn write(
        &mut self,
        mut writer: GenerationWriter,
        frozen: &Frozen,
        making: &Making,
    ) -> Result<CheckpointDone, CheckpointError> {
        let write = Instant::now();
        for batch in &frozen.batches {
            writer.put_pages(batch.space, batch.first_page, &batch.bytes)?;
        }
        for (space, gone) in &frozen.gone {
            for run in gone.zero.runs() {
                writer.put_zero(*space, run.start, run.end - run.start)?;
            }
            for run in gone.back_to_file.runs() {
                writer.put_back_to_file(*space, run.start, run.end - run.start)?;
            }
        }
        // Those that were not back in their waits right after the stop.
        self.kernel.look_at_waits(self.root);
        writer.set_spaces(&frozen.live)?;
        sync::files(&frozen.image)?;
        let kind = if making.parent.is_some() { Kind::Delta } else { Kind::Full };
        let summary = Summary {
            kind: kind as i32,
            time_unix_ns: unix_ns(),
            freeze_us: frozen.freeze.as_micros() as u64,
            elapsed_us: making.begun.elapsed().as_micros() as u64,
            tasks: frozen.image.processes.iter().map(Process::tasks).sum(),
            program: self.program.clone(),
            bytes_memory: frozen.bytes_memory,
            ..Summary::default()
        };
        let id = making.id.0;
        let mut frozen_event = Event::phase(Phase::Freeze, frozen.freeze)
            .count("id", id)
            .count("pages", frozen.pages)
            .count("injected", frozen.injected)
            .count("smaps", frozen.smaps)
            .count("ends_bytes", frozen.ends);
        for (part, took) in frozen.spent.named() {
            frozen_event = frozen_event.count(part, took.as_micros() as u64);
        }
        if let Some(seen) = self.kernel.lifecycle() {
            frozen_event = frozen_event
                .count("forks", seen.forks)
                .count("execs", seen.execs)
                .count("exits", seen.exits)
                .count("lost", seen.lost);
        }
        if let Some(faults) = self.reconcile.counts() {
            frozen_event = frozen_event
                .count("faults_logged", faults.logged)
                .count("faults_lost", faults.lost)
                .count("faults_unlogged", faults.unlogged)
                .count("faults_gone", faults.gone);
        }
        self.event(&frozen_event);
        self.event(&Event::phase(Phase::Write, write.elapsed()).count("id", id));
        let commit = Instant::now();
        let lease = self.lease.clone();
        let gone = making.parent.and_then(|parent| image::missing(&lease.dir().proc_path(), parent));
        gone.map_or(Ok(()), |gone| Err(CheckpointError::Ancestor(gone)))?;
        let check = || lease.check().map_err(|e| e.to_string());
        // No checkpoint is committed that a restart would refuse.
        frozen.image.check()?;
        let committed = writer.commit(&frozen.image.encode_to_vec(), summary, check)?;
        self.tracked().committed();
        self.parent = Some(making.id);
        files::forget_cuts(lease.dir());
        keep::keep(&lease);
        self.event(&Event::phase(Phase::Commit, commit.elapsed()).count("id", id));
        Ok(CheckpointDone {
            ok: true,
            id,
            parent: making.parent.map(|p| p.0),
            kind: if making.parent.is_some() { "delta" } else { "full" }.to_owned(),
            freeze_us: frozen.freeze.as_micros() as u64,
            elapsed_us: making.begun.elapsed().as_micros() as u64,
            pages: committed.summary.pages,
            bytes_stored: committed.summary.bytes_stored,
            killed: false,
        })
    }
}

fn as_owner(dir: &JobDir) -> Result<Assumed, CheckpointError> {
    let what = "cannot act as the directory's owner";
    dir.assume().map_err(|error| CheckpointError::Io { what, source: io::Error::other(error) })
}

fn leave_if_crowded(space: &mut Space) {
    let Some(count) = space.leave_if_crowded() else { return };
    log::warn!(
        "process {} is no longer tracked, and all of it is looked at in each checkpoint while it stands still: it has {count} \
         mappings, near vm.max_map_count ({}), and tracking might take one too many",
        space.pid,
        map_count::limit()
    );
}

pub(super) fn lock(tracked: &Mutex<Tracked>) -> MutexGuard<'_, Tracked> {
    tracked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its causes, in a line.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The job's id (a UUID) as 16 bytes.
fn job_bytes(id: &str) -> [u8; 16] {
    let digits: Vec<u8> = id.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    bytes
}

//! The part of a checkpoint between freeze and thaw: runs on the tracer's thread, writes nothing.

use super::checkpoint::After;
use super::residue::{Batch, Residue};
use crate::capture;
use crate::freeze::spent::{Spent, timed};
use crate::freeze::{self, FrozenTree};
use crate::image::SpaceId;
use crate::machine::{self, Baseline};
use crate::memory::pages;
use crate::memory::runs::PageSet;
use crate::memory::shared;
use crate::memory::through::Through;
use crate::memory::vma::{self, Vma};
use crate::object::{Object, deleted::DeletedRecord, known_ends::Known};
use crate::page::{Arrivals, Arriving, Pager};
use crate::record::Image;
use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd;
use crate::task::iterators::Kernel;
use crate::task::posix_timers;
use crate::task::proc::{ProcDir, reached_by};
use crate::track::objects::{self, Objects};
use crate::track::space::{self, Gone, Space};
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The tracker's state of a whole job.
#[derive(Debug, Default)]
pub struct Tracked {
    pub spaces: Vec<Space>,
    pub objects: Objects,
    /// Of files that are read and written.
    pub ends: Known,
    /// Something may have been in flight over a scan of this checkpoint, into any page.
    pub direct: bool,
    /// Number of the next new space; grows over restarts too.
    pub next_space: u32,
    /// Whose descriptors 0, 1 and 2 are the standard streams; `None`: ckptbpf's own.
    pub standards_of: Option<Pid>,
    /// CPU time that the program's processes had had at the restart.
    pub cpu_time_before: Duration,
    /// What the program is told of the processor, if less than there is.
    pub cpu_baseline: Option<Baseline>,
    /// While the pages of a lazy restart arrive, and until the hand-over.
    pub pager: Option<Arc<Pager>>,
}

/// What the freeze brought out.
pub struct Frozen {
    pub image: Image,
    pub batches: Vec<Batch>,
    /// Pages copied in the freeze.
    pub pages: u64,
    pub gone: Vec<(SpaceId, Gone)>,
    pub live: Vec<(SpaceId, Vec<Range<u64>>)>,
    pub freeze: Duration,
    pub spent: Spent,
    pub injected: u64,
    pub smaps: u64,
    /// Bytes of files that were read.
    pub ends: u64,
    /// Memory of its own that the tree holds.
    pub bytes_memory: u64,
    /// Still stopped, when checkpoint and end are to be one.
    pub held: Option<FrozenTree>,
}

/// What goes to the writer's thread.
pub enum Message {
    Overflow(Batch),
    Done(Box<Result<Frozen, Refusal>>),
}

impl Tracked {
    fn next(&mut self) -> SpaceId {
        self.next_space += 1;
        SpaceId(self.next_space - 1)
    }

    /// A checkpoint begins.
    pub fn begin(&mut self) {
        self.spaces.iter_mut().for_each(Space::begin);
        self.objects.begin();
        self.direct = false;
    }

    /// The generation being made has no parent: it holds everything.
    pub fn begin_full(&mut self) {
        self.spaces.iter_mut().for_each(Space::forget);
        self.objects.forget();
    }

    /// Drops spaces whose process or program is gone; gives each new member one.
    pub fn renew(&mut self, members: &[Pid]) {
        self.spaces.retain(|s| members.contains(&s.pid) && s.is_current());
        for &pid in members {
            // The child of a vfork is in its parent's memory until it executes a program of its own.
            if self.spaces.iter().all(|s| s.pid != pid) && !shares_memory_with_parent(pid) {
                let id = self.next();
                // It may have ended since: then the freeze does not meet it either.
                self.spaces.extend(Space::new(id, pid));
            }
        }
    }

    /// In a freeze: what is still on its way to each process.
    fn arriving(&mut self) -> Result<Arrivals, Refusal> {
        let Some(pager) = &self.pager else { return Ok(Arrivals::default()) };
        let mut arriving = pager.arriving().map_err(|e| Refusal::NotStopped(format!("{e}")))?;
        // It is told once: whatever fails from here on, the next scan knows.
        for space in &mut self.spaces {
            if let Some(moved) = arriving.of.get_mut(&space.pid).map(|one| std::mem::take(&mut one.moved)) {
                space.count_as_written(&moved);
            }
        }
        Ok(arriving)
    }

    /// In a freeze, when everything has arrived: tracking goes on without the pager.
    pub fn hand_over(&mut self, tree: &FrozenTree) -> Result<(), Refusal> {
        // All of them: a child that was forked since the restart has no space yet.
        let mut found = HashMap::new();
        for pid in tree.processes.iter().map(|p| p.pid) {
            found.insert(pid, space::mappings(pid).reading(pid, "its mappings")?);
        }
        let mut arriving = self.arriving()?;
        arriving.let_go_of_children(found.iter().map(|(&pid, mappings)| (pid, &mappings[..])));
        for space in &mut self.spaces {
            if let Some(mappings) = found.get(&space.pid) {
                space.hand_over(mappings);
            }
        }
        if let Some(pager) = self.pager.take() {
            pager.stop();
        }
        Ok(())
    }

    /// A generation with everything scanned is durable.
    pub fn committed(&mut self) {
        for space in &mut self.spaces {
            space.committed();
        }
        self.objects.committed();
    }
}

fn shares_memory_with_parent(pid: Pid) -> bool {
    let parent = ProcDir::process(pid).stat().map(|s| s.parent());
    let same = |parent| pidfd::compare(reached_by(pid), reached_by(parent), pidfd::Kind::Vm, 0, 0);
    let order = parent.and_then(same);
    order.is_ok_and(|order| order == Ordering::Equal)
}

/// Freezes the tree below `root`, captures it, thaws it (or holds it), and reports.
pub fn run(root: Pid, after: After, tracked: &Mutex<Tracked>, kernel: &Kernel, to: &SyncSender<Message>) {
    let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
    let done = frozen(root, after, &mut tracked, kernel, to);
    // Nobody there: the writer's thread has failed and said so.
    let _ = to.send(Message::Done(Box::new(done)));
}

fn frozen(
    root: Pid,
    after: After,
    tracked: &mut Tracked,
    kernel: &Kernel,
    to: &SyncSender<Message>,
) -> Result<Frozen, Refusal> {
    let mut residue = Residue::new(to.clone());
    // Known from here on.
    machine::prepare();
    let mut tree = freeze::freeze(root, kernel)?;
    let stop = tree.since.elapsed();
    let mut frozen = match inside(&mut tree, tracked, &mut residue, kernel) {
        Ok(frozen) => frozen,
        Err(error) => {
            // Writes may be under way: that may be what is refused.
            tracked.ends = Known::default();
            tree.thaw();
            return Err(error);
        }
    };
    match after {
        After::Continue => frozen.freeze = tree.thaw(),
        After::Kill => {
            frozen.freeze = tree.since.elapsed();
            frozen.held = Some(tree);
        }
    }
    frozen.spent.stop = stop;
    frozen.pages = residue.pages;
    frozen.batches = residue.batches;
    Ok(frozen)
}

fn inside(
    tree: &mut FrozenTree,
    tracked: &mut Tracked,
    residue: &mut Residue,
    kernel: &Kernel,
) -> Result<Frozen, Refusal> {
    let members: Vec<Pid> = tree.processes.iter().map(|p| p.pid).collect();
    tracked.renew(&members);
    let mut reading = Duration::ZERO;
    let hidden = timed(&mut reading, || kernel.read(&members));
    let standards_of = tracked.standards_of.map_or_else(Pid::this, reached_by);
    let lazy = tracked.pager.is_some();
    let captured = capture::capture(tree, standards_of, &hidden, lazy, Some(&mut tracked.ends))?;
    let mut spent = Spent { hidden: reading, ..captured.spent };
    let mut image = captured.image;
    if let (Some(machine), Some(baseline)) = (&mut image.machine, tracked.cpu_baseline) {
        machine.limit(baseline);
    }
    image.cpu_time_before = u64::try_from(tracked.cpu_time_before.as_nanos()).unwrap_or(u64::MAX);
    overruns(&mut image, kernel);
    image.clocks = Some(capture::clocks(tree)?);
    // A page's mark may come before its data: what was in flight was pinned, and marked, earlier.
    if tracked.direct || image.descriptions.iter().any(|d| d.flags & libc::O_DIRECT as u32 != 0) {
        tracked.spaces.iter_mut().for_each(Space::again);
    }
    // Before the scan: a page that arrives in between is in both, and both say that the chain has it.
    let mut arriving = tracked.arriving()?;
    let processes = tree.processes.iter().zip(&image.processes);
    arriving.let_go_of_children(processes.map(|(process, record)| (process.pid, &record.mappings[..])));
    let (mut gone, mut live) = (Vec::new(), Vec::new());
    let mut buffer = Vec::new();
    for (process, record) in tree.processes.iter().zip(&mut image.processes) {
        let pid = process.pid;
        let space = space_of(&mut tracked.spaces, pid)?;
        record.space = space.id.0;
        let Arriving { unfilled, .. } = arriving.of.remove(&pid).unwrap_or_default();
        let set = timed(&mut spent.scan, || {
            if tracked.pager.is_some() && space.uffd.is_none() {
                no_longer_paged(process.reached_by(), &mut record.mappings)?;
            }
            watched_by_us(space, &mut record.mappings)?;
            space.round(&record.mappings).reading(pid, "the page map")
        })?;
        let id = space.id;
        let mut push = |page: u64, bytes: &[u8]| residue.push(id, page, bytes);
        let copy = || {
            let unreadable =
                pages::copy(process.reached_by(), &process.memory, &set, &mut buffer, &mut push)?;
            let others = space.all_differing(&process.memory, &mut push)?;
            io::Result::Ok(unreadable.union(&others))
        };
        let unreadable = timed(&mut spent.copy, copy).reading(pid, "its memory")?;
        if let Some(run) = unreadable.runs().first() {
            let what = format!("has a page at {:x} that cannot be read", run.start * 4096);
            return Err(Refusal::unsupported(
                pid,
                what,
                "this kernel does not tell whether it is a guard page (MADV_GUARD_INSTALL)",
            ));
        }
        record.guards = space.guards().runs().iter().map(vma::Pages::of).collect();
        gone.push((space.id, space.gone(&record.mappings, &unfilled)));
        live.push((space.id, private_ranges(&record.mappings)));
    }
    for index in 0..image.objects.len() {
        let pages = shared::pages(&image, index as u32);
        let content = (&pages, captured.through.get(&(index as u32)));
        let space = shared_object(index as u32, &image, content, tracked, residue, &mut gone)?;
        image.objects[index].space = space.0;
        live.push((space, pages.runs().to_vec()));
    }
    deleted_files(&mut image, tracked, residue, &mut gone, &mut live)?;
    Ok(Frozen {
        image,
        batches: Vec::new(),
        pages: 0,
        gone,
        live,
        freeze: Duration::ZERO,
        spent,
        injected: captured.injected,
        smaps: captured.smaps,
        ends: captured.ends,
        bytes_memory: 4096 * tracked.spaces.iter().map(Space::populated_pages).sum::<u64>(),
        held: None,
    })
}

/// Whether a checkpoint would be refused, as far as that does not depend on the content of pages: freezes, looks at everything,
/// thaws.
///
/// Returns for how long it stood.
pub fn look(root: Pid, tracked: &Mutex<Tracked>, kernel: &Kernel) -> Result<Duration, Refusal> {
    let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
    machine::prepare();
    let mut tree = freeze::freeze(root, kernel)?;
    let seen = looked_at(&mut tree, &mut tracked, kernel);
    let stood = tree.thaw();
    seen.map(|()| stood)
}

fn looked_at(tree: &mut FrozenTree, tracked: &mut Tracked, kernel: &Kernel) -> Result<(), Refusal> {
    let members: Vec<Pid> = tree.processes.iter().map(|p| p.pid).collect();
    tracked.renew(&members);
    let hidden = kernel.read(&members);
    let standards_of = tracked.standards_of.map_or_else(Pid::this, reached_by);
    let lazy = tracked.pager.is_some();
    let mut image = capture::capture(tree, standards_of, &hidden, lazy, None)?.image;
    for (process, record) in tree.processes.iter().zip(&mut image.processes) {
        let space = space_of(&mut tracked.spaces, process.pid)?;
        // What the pager watches is told from what the program watches once that has let go of it.
        if !lazy {
            watched_by_us(space, &mut record.mappings)?;
        }
    }
    Ok(())
}

fn space_of(spaces: &mut [Space], pid: Pid) -> Result<&mut Space, Refusal> {
    let space = spaces.iter_mut().find(|s| s.pid == pid);
    space.ok_or_else(|| {
        Refusal::NotStopped(format!("process {pid} shares its memory with its parent (vfork)"))
    })
}

/// Nobody asks for the times of POSIX timers after this, by which the kernel would count on.
fn overruns(image: &mut Image, kernel: &Kernel) {
    let has = image.processes.iter_mut().filter(|process| !process.posix_timers.is_empty());
    let has: Vec<_> = has.map(|process| (Pid::from_raw(process.pid), &mut process.posix_timers)).collect();
    let overruns = kernel.overruns(&has.iter().map(|(pid, _)| *pid).collect::<Vec<_>>());
    has.into_iter().for_each(|(pid, timers)| posix_timers::count(pid, timers, &overruns));
}

/// A child that was forked while pages were missing was watched by the pager until just now.
fn no_longer_paged(pid: Pid, mappings: &mut [Vma]) -> Result<(), Refusal> {
    if !mappings.iter().any(|v| v.has("uw")) {
        return Ok(());
    }
    let shown =
        ProcDir::process(pid).text("smaps").and_then(|text| vma::parse(&text)).reading(pid, "smaps")?;
    for vma in mappings {
        let now = shown.iter().find(|raw| raw.start <= vma.start && vma.start < raw.end);
        if now.is_some_and(|raw| !raw.flags.iter().any(|flag| flag == "uw")) {
            vma.flags.retain(|flag| flag != "uw");
        }
    }
    Ok(())
}

/// Refuses memory that a userfaultfd of the program's own watches; registers the rest with ours. Both show as the
/// flag `uw`, which says nothing that a restart needs.
fn watched_by_us(space: &mut Space, mappings: &mut [Vma]) -> Result<(), Refusal> {
    space.take_up(mappings).reading(space.pid, "the page map")?;
    let not_ours = |v: &&Vma| v.has("uw") && !space.is_ours(v);
    let foreign = mappings.iter().find(not_ours).or_else(|| space.register(mappings).first().copied());
    if let Some(vma) = foreign {
        let what = format!("has the mapping {:x}-{:x}", vma.start, vma.end);
        let reason = "it is watched by the program's own userfaultfd, which cannot be saved yet";
        return Err(Refusal::unsupported(space.pid, what, reason));
    }
    mappings.iter_mut().for_each(|v| v.flags.retain(|flag| flag != "uw"));
    Ok(())
}

fn shared_object(
    index: u32,
    image: &Image,
    (pages, through): (&PageSet, Option<&Through>),
    tracked: &mut Tracked,
    residue: &mut Residue,
    gone: &mut Vec<(SpaceId, Gone)>,
) -> Result<SpaceId, Refusal> {
    let new = SpaceId(tracked.next_space);
    let space = tracked.objects.space(&image.objects[index as usize], || new);
    if space == new {
        tracked.next_space += 1;
    }
    let Some((pid, opened)) = objects::open(image, index, through) else {
        return Err(Refusal::NotStopped("shared memory was unmapped while it was looked at".to_owned()));
    };
    let opened = opened.reading(pid, "shared memory")?;
    let mut zero = PageSet::new();
    let stored = |page: u64, bytes: &[u8]| residue.push(space, page, bytes);
    let scanned = tracked.objects.scan(space, pages, &opened, stored, |page| zero.insert(page..page + 1));
    scanned.reading(pid, "shared memory")?;
    gone.push((space, Gone { zero: zero.intersection(pages), back_to_file: PageSet::new() }));
    Ok(space)
}

/// The content of files that have no name: open, mapped, executed.
fn deleted_files(
    image: &mut Image,
    tracked: &mut Tracked,
    residue: &mut Residue,
    gone: &mut Vec<(SpaceId, Gone)>,
    live: &mut Vec<(SpaceId, Vec<Range<u64>>)>,
) -> Result<(), Refusal> {
    // Those that are shared memory are saved as such.
    let as_memory = image.objects.iter().filter(|o| o.deleted);
    let mut done: HashMap<(u64, u64), SpaceId> =
        as_memory.map(|o| ((o.device, o.inode), SpaceId(o.space))).collect();
    let open = image.descriptions.iter().filter_map(|d| match &d.object {
        Some(Object::Deleted(file)) => Some(file),
        _ => None,
    });
    let all: Vec<DeletedRecord> = open.chain(&image.deleted).cloned().collect();
    for file in all {
        let identity = file.identity();
        if done.contains_key(&identity) {
            continue;
        }
        let new = SpaceId(tracked.next_space);
        let space = tracked.objects.space_of(identity, || new);
        if space == new {
            tracked.next_space += 1;
        }
        done.insert(identity, space);
        let Some((pid, link)) = objects::link_of(image, identity) else {
            return Err(Refusal::NotStopped("a deleted file was closed while it was looked at".to_owned()));
        };
        let opened = objects::open_link(pid, &link).reading(pid, "a deleted file")?;
        let pages: PageSet = std::iter::once(file.pages()).collect();
        let mut zero = PageSet::new();
        let stored = |page: u64, bytes: &[u8]| residue.push(space, page, bytes);
        let scanned =
            tracked.objects.scan(space, &pages, &opened, stored, |page| zero.insert(page..page + 1));
        scanned.reading(pid, "a deleted file")?;
        gone.push((space, Gone { zero: zero.intersection(&pages), back_to_file: PageSet::new() }));
        live.push((space, pages.runs().to_vec()));
    }
    let open = image.descriptions.iter_mut().filter_map(|d| match &mut d.object {
        Some(Object::Deleted(file)) => Some(file),
        _ => None,
    });
    for file in open.chain(&mut image.deleted) {
        file.space = done.get(&file.identity()).map_or(0, |space| space.0);
    }
    Ok(())
}

/// Page ranges whose content belongs to the process.
fn private_ranges(mappings: &[Vma]) -> Vec<Range<u64>> {
    let set: PageSet = mappings.iter().filter(|v| v.is_private_memory()).map(Vma::pages).collect();
    set.runs().to_vec()
}

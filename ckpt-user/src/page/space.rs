//! One address space whose pages are still arriving.
//!
//! ```text
//!  read all messages ─▶ apply events, in order ─▶ serve faults ─▶ fill ─┐
//!        ▲                                                              │
//!        └──────────────── EAGAIN: an event waits, or will ◀────────────┘
//! ```
//! Invariants:
//! - A page is filled only while the live map holds it, and a page that the map does not hold reads as zero.
//! - Events are applied before any fault that came with them is served: reading an event lets its thread go
//!   on, and from then on UFFDIO_COPY would succeed with what the image had there before.
//! - Events of several threads may come in another order than their changes: [`super::late`] puts them right.
//! - Between the change itself and the reading of its event the kernel answers each fill with EAGAIN
//!   (`mmap_changing` of fs/userfaultfd.c goes up before the change); nothing is ever filled on a guess.

use super::PagerError;
use super::late::Late;
use super::pending::{Part, Pending};
use super::source::PageSource;
use super::wiped;
use crate::image::SpaceId;
use crate::memory::runs::PageSet;
use crate::sys::pagemap::{Filter, GUARD, Pagemap, Region, SWAPPED};
use crate::sys::uffd::{Event, Filled, Messages, Uffd};
use crate::task::proc::reached_by;
use crate::track::backend;
use nix::unistd::Pid;
use std::ops::Range;

/// Pages filled at a time: a fault waits for at most one such copy (27 µs), and a block of the image has as many.
const BATCH: u64 = 16;

/// An address space and the userfaultfd that serves it.
pub struct LazySpace {
    /// Whose pages of the image.
    pub source: SpaceId,
    /// The rebuilt process; a child that it forked since is only known by its userfaultfd.
    pub pid: Option<Pid>,
    pub uffd: Uffd,
    /// Of the rebuilt process.
    pagemap: Option<Pagemap>,
    pub pending: Pending,
    /// What the events may yet tell of changes that others have overtaken.
    late: Late,
    /// Where mremap(2) has brought pages whose marks are still those of their old place.
    pub moved: PageSet,
    /// Pages of faults that are to be served, some of them again.
    stalled: Vec<u64>,
    /// Forked, and not served by anybody yet.
    pub children: Vec<LazySpace>,
    /// Neighbours of pages that faulted, in pages of this space.
    near: Vec<Range<u64>>,
    /// The rest in its order, the next one last.
    order: Vec<Range<u64>>,
}

/// What came of an attempt to fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Some pages are there, or are not pending any more.
    Made,
    /// Events have to be read first.
    Busy,
    /// Nothing is pending.
    Nothing,
    /// The address space is gone.
    Dead,
}

/// Page contents on their way.
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; BATCH as usize * 4096])
    }
}

impl LazySpace {
    /// `order`: pages of the image, the first to be filled first; `held`: pages of the mappings that are watched.
    pub fn new(
        source: SpaceId,
        pid: Option<Pid>,
        uffd: Uffd,
        pending: Pending,
        order: Vec<Range<u64>>,
        held: PageSet,
    ) -> Self {
        let order = order.into_iter().rev().collect();
        let (stalled, near, children) = (Vec::new(), Vec::new(), Vec::new());
        // Without it the first fill says that the process is gone.
        let pagemap = pid.and_then(|pid| Pagemap::open(reached_by(pid)).ok());
        Self {
            source,
            pid,
            uffd,
            pagemap,
            pending,
            late: Late::new(held),
            moved: PageSet::new(),
            stalled,
            children,
            near,
            order,
        }
    }

    /// Reads and applies all events, then serves all faults. What was read is kept whatever fails: children that were
    /// forked in `children`, faults that were not served in `stalled`.
    ///
    /// # Errors
    /// When a page cannot be had, or the kernel refuses what it never should.
    pub fn serve(
        &mut self,
        from: &mut dyn PageSource,
        messages: &mut Messages,
        buffer: &mut Buffer,
    ) -> Result<(), PagerError> {
        self.settle();
        while self.uffd.has_message().map_err(PagerError::kernel("wait for events of"))? {
            let wiped = self.wiped_by_a_fork()?;
            match self.uffd.read(messages).map_err(PagerError::kernel("read events of"))? {
                None => break,
                Some(Event::Fault { address }) => self.stalled.push(address / 4096),
                Some(event) => self.apply(event, wiped)?,
            }
        }
        let mut waiting = std::mem::take(&mut self.stalled);
        waiting.sort_unstable();
        waiting.dedup();
        while let Some(&page) = waiting.last() {
            let served = self.fault(page, from, buffer);
            if served.is_err() {
                self.stalled.append(&mut waiting);
                return served;
            }
            waiting.pop();
        }
        Ok(())
    }

    /// Notes when no change is under way; whether none was found to be.
    pub fn settle(&mut self) -> bool {
        if !self.late.is_settled() && !self.uffd.is_changing() {
            self.late.settle();
        }
        self.late.is_settled()
    }

    /// `wiped`: by a fork, as it was looked up before the event was read.
    fn apply(&mut self, event: Event, wiped: Option<Vec<Range<u64>>>) -> Result<(), PagerError> {
        match event {
            Event::Fault { .. } => {}
            Event::Remove { start, end } => {
                self.pending.remove(&(start / 4096..end / 4096));
            }
            Event::Unmap { start, end } => {
                self.late.unmap(&mut self.pending, &(start / 4096..end / 4096));
            }
            Event::Remap { from, to, len } => {
                let (from, to, count) = (from / 4096, to / 4096, len / 4096);
                self.late.remap(&mut self.pending, from, to, count);
                self.moved.insert(to..to + count);
            }
            Event::Fork(uffd) => {
                let (pending, held) = (self.pending.clone(), self.late.held().clone());
                let child = LazySpace::new(self.source, None, uffd, pending, Vec::new(), held);
                // Watched whatever fails.
                self.children.push(child);
                let wiped = match wiped {
                    Some(wiped) => wiped,
                    None if self.pending.is_empty() => Vec::new(),
                    None => self.wiped()?,
                };
                if let Some(child) = self.children.last_mut() {
                    wiped.iter().for_each(|pages| drop(child.pending.remove(pages)));
                }
            }
        }
        Ok(())
    }

    /// What a child gets as zeros, if the next message may tell of one.
    fn wiped_by_a_fork(&self) -> Result<Option<Vec<Range<u64>>>, PagerError> {
        let Some(pid) = self.pid else { return Ok(None) };
        if self.pending.is_empty() || !self.uffd.is_changing() {
            return Ok(None);
        }
        let is_fault = self.uffd.has_fault().map_err(PagerError::kernel("tell what waits for"))?;
        let is_fork = !is_fault && wiped::is_forking(pid).map_err(PagerError::kernel("tell who forks of"))?;
        if is_fork { self.wiped().map(Some) } else { Ok(None) }
    }

    /// Of a child of a child only what its parent had advised is known: docs/limitations.md.
    fn wiped(&self) -> Result<Vec<Range<u64>>, PagerError> {
        let Some(pid) = self.pid else { return Ok(Vec::new()) };
        wiped::pages(pid).map_err(PagerError::kernel("tell what a fork leaves out of"))
    }

    /// How many pages have not arrived.
    pub fn missing(&self) -> u64 {
        self.pending.len() + self.late.waiting()
    }

    /// Whether faults wait for the kernel to let them be served.
    pub fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// The faulting page, alone.
    fn fault(&mut self, page: u64, from: &mut dyn PageSource, buffer: &mut Buffer) -> Result<(), PagerError> {
        let Some(part) = self.pending.within(&(page..page + 1)).next() else {
            let filled = self.uffd.zero(page * 4096, 4096).map_err(PagerError::kernel("fill"))?;
            return self.settle_fault(page, filled);
        };
        let Some(filled) = self.copy(&part, from, buffer)? else {
            // The thread finds the guard page by itself.
            return self.settle_fault(page, Filled::Exists);
        };
        if let Filled::Bytes(_) | Filled::Exists = filled {
            self.pending.remove(&part.pages);
            let near = from.neighbours(self.source, part.origin);
            // Its neighbours in the image are its neighbours here, as far as they have moved with it.
            let before = (part.origin - near.start).min(page);
            self.near.push(page - before..page + (near.end - part.origin));
        }
        self.settle_fault(page, filled)
    }

    fn settle_fault(&mut self, page: u64, filled: Filled) -> Result<(), PagerError> {
        match filled {
            Filled::Bytes(_) | Filled::Dead => Ok(()),
            Filled::Busy => {
                self.stalled.push(page);
                Ok(())
            }
            // It is there, or mapped anew without us: the thread finds out by itself.
            Filled::Exists | Filled::Gone => {
                self.uffd.wake(page * 4096, 4096).map_err(PagerError::kernel("wake a thread of"))
            }
        }
    }

    /// `None` when guard pages were found among them: they are pending no more.
    fn copy(
        &mut self,
        part: &Part,
        from: &mut dyn PageSource,
        buffer: &mut Buffer,
    ) -> Result<Option<Filled>, PagerError> {
        let bytes = &mut buffer.0[..part.count() as usize * 4096];
        from.read(self.source, part.origin, bytes)?;
        let guarded = self.guarded(&part.pages);
        if !guarded.is_empty() {
            // They may be those of a mapping that has come to where the pages were, which an event is going to tell.
            if self.uffd.is_changing() {
                return Ok(Some(Filled::Busy));
            }
            for pages in &guarded {
                self.pending.remove(pages);
            }
            return Ok(None);
        }
        // At another place than in the image it is new to the chain: it arrives dirty.
        let is_clean = part.is_at_home() && backend::protects();
        let filled = self.uffd.copy(part.pages.start * 4096, bytes, is_clean, true);
        filled.map(Some).map_err(PagerError::kernel("fill"))
    }

    /// Guard pages (MADV_GUARD_INSTALL), of which no event tells, and which a fill would replace.
    fn guarded(&mut self, pages: &Range<u64>) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        let Some(pagemap) = &mut self.pagemap else { return found };
        let filter = Filter { all: SWAPPED, ..Filter::default() };
        let each = |region: Region| {
            if region.categories & GUARD != 0 {
                found.push(region.start / 4096..region.end / 4096);
            }
        };
        match pagemap.scan(pages.start * 4096, pages.end * 4096, filter, false, each) {
            Ok(()) => found,
            // The address space is gone, which the fill says.
            Err(_) => Vec::new(),
        }
    }

    /// Fills the neighbours of a page that faulted.
    pub fn fill_near(
        &mut self,
        from: &mut dyn PageSource,
        buffer: &mut Buffer,
    ) -> Result<Progress, PagerError> {
        while let Some(range) = self.near.pop() {
            let next = self.pending.within(&range).next();
            if let Some(part) = next {
                let progress = self.fill(&part, from, buffer)?;
                self.near.push(range);
                return Ok(progress);
            }
        }
        Ok(Progress::Nothing)
    }

    /// Fills the next few pages of the background.
    pub fn fill_next(
        &mut self,
        from: &mut dyn PageSource,
        buffer: &mut Buffer,
    ) -> Result<Progress, PagerError> {
        while let Some(range) = self.order.last() {
            let next = self.pending.within(range).next();
            if let Some(part) = next {
                return self.fill(&part, from, buffer);
            }
            self.order.pop();
        }
        let rest = self.pending.parts().next();
        rest.map_or(Ok(Progress::Nothing), |part| self.fill(&part, from, buffer))
    }

    /// Fills a page that has moved.
    pub fn fill_moved(
        &mut self,
        from: &mut dyn PageSource,
        buffer: &mut Buffer,
    ) -> Result<Progress, PagerError> {
        let moved = self.pending.parts().find(|part| !part.is_at_home());
        moved.map_or(Ok(Progress::Nothing), |part| self.fill(&part, from, buffer))
    }

    /// Fills the first pages of `part`.
    fn fill(
        &mut self,
        part: &Part,
        from: &mut dyn PageSource,
        buffer: &mut Buffer,
    ) -> Result<Progress, PagerError> {
        let start = part.pages.start;
        let mut count = part.count().min(BATCH);
        loop {
            let part = Part { pages: start..start + count, origin: part.origin };
            let Some(filled) = self.copy(&part, from, buffer)? else { return Ok(Progress::Made) };
            let done = match filled {
                Filled::Bytes(bytes) => bytes / 4096,
                // A copy across the border of two mappings is refused as a whole.
                Filled::Gone if count > 1 => {
                    count = 1;
                    continue;
                }
                // There already, or nothing is mapped there that we serve.
                Filled::Exists | Filled::Gone => 1,
                Filled::Busy => return Ok(Progress::Busy),
                Filled::Dead => return Ok(Progress::Dead),
            };
            self.pending.remove(&(start..start + done));
            return Ok(Progress::Made);
        }
    }

    /// Pages that the image's chain still stands for: pending, and where they were at the checkpoint.
    pub fn unfilled(&self) -> PageSet {
        self.pending.parts().filter(Part::is_at_home).map(|part| part.pages).collect()
    }
}

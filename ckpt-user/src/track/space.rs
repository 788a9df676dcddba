//! One tracked address space.

use crate::image::SpaceId;
use crate::memory::pages::{self, Scan};
use crate::memory::runs::PageSet;
use crate::memory::vma::Vma;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::{MODE_WP, Uffd};
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::io;

/// The tracker's state of one address space; it lives as long as the process runs the same program.
#[derive(Debug)]
pub struct Space {
    pub id: SpaceId,
    pub pid: Pid,
    start_time: u64,
    pagemap: Pagemap,
    /// What write-protects its pages; without it every checkpoint of this space is full.
    pub uffd: Option<Uffd>,
    /// What takes over from `uffd` once a lazy restart's pages are there.
    successor: Option<Uffd>,
    /// Moved by the program while lazy: their marks say clean, and the chain has them elsewhere.
    moved: PageSet,
    /// Reported as written since the last committed generation.
    dirty: PageSet,
    /// A scan failed after it may have re-armed pages: what was written is not known, all of it is saved.
    lost: bool,
    /// What the committed chain holds for this space; `None` until the first commit.
    saved: Option<PageSet>,
    /// As of the scan that is being written.
    pending: Option<PageSet>,
    /// Handed out to be written by the checkpoint that is being made.
    handed: PageSet,
}

/// What the checkpoint being made has to hold of one space beside stored pages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// The chain has them, memory does not: they read as zero now.
    pub zero: PageSet,
    /// The same in private file mappings: they are the file's again.
    pub back_to_file: PageSet,
}

impl Space {
    pub fn new(id: SpaceId, pid: Pid) -> io::Result<Self> {
        let start_time = ProcDir::process(pid).stat()?.start_time();
        let pagemap = Pagemap::open(pid)?;
        Ok(Self {
            id,
            pid,
            start_time,
            pagemap,
            uffd: None,
            successor: None,
            moved: PageSet::new(),
            dirty: PageSet::new(),
            lost: false,
            saved: None,
            pending: None,
            handed: PageSet::new(),
        })
    }

    /// A space just restored, armed by `uffd`: its pages are those of the generation (`saved`), or all new to a
    /// directory that does not hold it (`None`).
    pub fn restored(id: SpaceId, pid: Pid, uffd: Option<Uffd>, saved: Option<PageSet>) -> io::Result<Self> {
        Ok(Self { uffd, saved, ..Self::new(id, pid)? })
    }

    /// It is being restored lazily: `uffd` is the pager's too, and `successor` is for afterwards.
    #[must_use]
    pub fn succeeded_by(self, successor: Option<Uffd>) -> Self {
        Self { successor, ..self }
    }

    /// The next round counts these as written.
    pub fn moved(&mut self, moved: &PageSet) {
        self.moved = self.moved.union(moved);
    }

    /// In a freeze, when all pages of a lazy restart are there: from here on the successor watches. What is
    /// dirty by now stays so.
    pub fn hand_over(&mut self, mappings: &[Vma]) {
        let Some(successor) = self.successor.take() else { return };
        match pages::scan(&mut self.pagemap, mappings, false) {
            Ok(scan) => self.dirty = self.dirty.union(&scan.written).union(&self.moved),
            Err(_) => self.lost = true,
        }
        self.moved = PageSet::new();
        for vma in mappings.iter().filter(|v| v.is_private_memory()) {
            if let Some(uffd) = &self.uffd {
                // What is not registered needs no letting go.
                let _ = uffd.unregister(vma.start, vma.end - vma.start);
            }
        }
        self.uffd = Some(successor);
        self.register(mappings);
        // All marks went with the registration.
        if pages::scan(&mut self.pagemap, mappings, true).is_err() {
            self.lost = true;
        }
    }

    /// Whether this is still the same address space: same process, no other program executed.
    pub fn is_current(&mut self) -> bool {
        let same = ProcDir::process(self.pid).stat().is_ok_and(|s| s.start_time() == self.start_time);
        // The map of an address space that is gone gives ENOMEM.
        same && self.pagemap.scan(0, 4096, crate::sys::pagemap::Filter::default(), false, |_| ()).is_ok()
    }

    pub fn is_saved(&self) -> bool {
        self.saved.is_some()
    }

    /// Has every private mapping watched for writes. What refuses (the program's own userfaultfd, special
    /// mappings) stays unregistered and is saved whole each time.
    pub fn register(&self, mappings: &[Vma]) {
        let Some(uffd) = &self.uffd else { return };
        for vma in mappings.iter().filter(|v| v.is_private_memory()) {
            let _ = uffd.register(vma.start, vma.end - vma.start, MODE_WP);
        }
    }

    /// Scans, re-arms, and returns what this round has to copy: what is dirty now and, in the first round of
    /// a checkpoint (`first`), what earlier ones reported without being committed.
    pub fn round(&mut self, mappings: &[Vma], first: bool) -> io::Result<PageSet> {
        let protect = self.uffd.is_some();
        let scanned = pages::scan(&mut self.pagemap, mappings, protect);
        let Scan { populated, written } = scanned.inspect_err(|_| self.lost = true)?;
        let fresh = if (self.saved.is_none() && first) || self.lost {
            populated.clone()
        } else {
            written.union(&std::mem::take(&mut self.moved))
        };
        let to_copy = if first { fresh.union(&self.dirty) } else { fresh.clone() };
        self.dirty = self.dirty.union(&fresh);
        self.lost = false;
        let to_copy = to_copy.intersection(&populated);
        self.handed = if first { to_copy.clone() } else { self.handed.union(&to_copy) };
        self.pending = Some(populated);
        Ok(to_copy)
    }

    /// Pages of its own that the last round found.
    pub fn populated_pages(&self) -> u64 {
        self.pending.as_ref().map_or(0, PageSet::len)
    }

    /// Whether a round of the checkpoint being made has been done.
    pub fn has_begun(&self) -> bool {
        self.pending.is_some()
    }

    /// What has become absent since the chain's newest generation, as of the last round.
    /// `unfilled` pages of a lazy restart are absent only for now.
    pub fn gone(&self, mappings: &[Vma], unfilled: &PageSet) -> Gone {
        let Some(populated) = &self.pending else { return Gone::default() };
        // What an earlier round of this checkpoint wrote may be gone again by its last one.
        let held = self.saved.as_ref().map_or_else(|| self.handed.clone(), |s| s.union(&self.handed));
        let absent = held.difference(populated).difference(unfilled);
        let of = |file: bool| -> PageSet {
            let vmas = mappings.iter().filter(|v| v.is_private_memory() && v.file.is_some() == file);
            vmas.map(Vma::pages).collect()
        };
        Gone { zero: absent.intersection(&of(false)), back_to_file: absent.intersection(&of(true)) }
    }

    /// The generation with this checkpoint's pages is durable: nothing is dirty relative to it.
    pub fn committed(&mut self, unfilled: &PageSet) {
        self.dirty = PageSet::new();
        if let Some(populated) = self.pending.take() {
            self.saved = Some(populated.union(unfilled));
        }
    }

    /// A checkpoint begins (again): its first round copies all that is dirty since the last commit.
    pub fn begin(&mut self) {
        self.pending = None;
    }
}

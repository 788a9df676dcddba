//! One tracked address space.

use super::compared::{Compared, Hashes};
use super::{backend, soft_dirty};
use crate::image::SpaceId;
use crate::memory::map_count;
use crate::memory::pages::{self, Scan};
use crate::memory::runs::PageSet;
use crate::memory::vdso;
use crate::memory::vma::{self, Kind, Vma};
use crate::planted;
use crate::sys::mem::Forced;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::{MODE_WP, Uffd};
use crate::task::proc::{ProcDir, reached_by};
use nix::unistd::Pid;
use std::io;

/// The tracker's state of one address space; it lives as long as the process runs the same program.
#[derive(Debug)]
pub struct Space {
    pub id: SpaceId,
    pub pid: Pid,
    start_time: u64,
    program: [i64; 6],
    pagemap: Pagemap,
    /// What write-protects its pages; without it every checkpoint of this space is full.
    pub uffd: Option<Uffd>,
    /// Soft-dirty bits tell instead: then it is scanned only while it stands still.
    pub soft_dirty: bool,
    /// It has nearly as many mappings as it may have: none is watched, for good.
    pub crowded: bool,
    /// Mappings that refuse to be watched.
    unwatched: PageSet,
    /// Private pages that are not watched.
    compared: Compared,
    /// What takes over from `uffd` once a lazy restart's pages are there.
    successor: Option<Uffd>,
    /// Written, whatever their marks say: moved by the program while lazy, when the chain has them elsewhere; or a read
    /// into them was in flight over a scan.
    unmarked: PageSet,
    /// Of mappings that have just come under watch: whatever the marks say, nobody knows when they were written.
    taken_up: PageSet,
    /// Reported as written since the last committed generation.
    dirty: PageSet,
    /// A scan failed after it may have re-armed pages: what was written is not known, all of it is saved.
    lost: bool,
    /// What the committed chain holds for this space.
    held: Option<Held>,
    /// Populated, as of the last scan of the checkpoint being made.
    pending: Option<PageSet>,
    /// Of what is watched: what the last scan reported as written, until it is taken.
    reported: Option<PageSet>,
    /// Guard pages, as of the last scan.
    guards: PageSet,
    /// Could not be read when it was their turn: the next round tries again.
    missed: PageSet,
    /// Of this checkpoint: pages handed out to be written, and what the chain holds once it is committed.
    handed: PageSet,
    next: Held,
}

/// What a chain says of a space.
#[derive(Debug, Default)]
pub struct Held {
    /// Pages with contents.
    pub saved: PageSet,
    /// Pages that are zeros there and absent in memory: no longer right once a file is mapped in their place.
    pub zero: PageSet,
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
        let stat = ProcDir::process(pid).stat()?;
        // Before its memory is opened: should it execute another program in between, the next look finds that.
        let program = ProcDir::process(reached_by(pid)).stat()?.program();
        let pagemap = Pagemap::open(reached_by(pid))?;
        Ok(Self {
            id,
            pid,
            start_time: stat.start_time(),
            program,
            pagemap,
            uffd: None,
            soft_dirty: false,
            crowded: false,
            unwatched: PageSet::new(),
            compared: Compared::default(),
            successor: None,
            unmarked: PageSet::new(),
            taken_up: PageSet::new(),
            dirty: PageSet::new(),
            lost: false,
            held: None,
            pending: None,
            reported: None,
            guards: PageSet::new(),
            missed: PageSet::new(),
            handed: PageSet::new(),
            next: Held::default(),
        })
    }

    /// A space just restored, armed by `uffd`: its pages are those of the generation (`held`), or all new to a
    /// directory that does not hold it (`None`). `hashes` are of those that are not watched.
    pub fn restored(
        id: SpaceId,
        pid: Pid,
        uffd: Option<Uffd>,
        held: Option<Held>,
        hashes: Hashes,
    ) -> io::Result<Self> {
        Ok(Self { uffd, held, compared: Compared::restored(hashes), ..Self::new(id, pid)? })
    }

    /// It is being restored lazily: `uffd` is the pager's too, and `successor` is for afterwards.
    #[must_use]
    pub fn succeeded_by(self, successor: Option<Uffd>) -> Self {
        Self { successor, ..self }
    }

    /// The next round does.
    pub fn count_as_written(&mut self, pages: &PageSet) {
        self.unmarked = self.unmarked.union(pages);
    }

    /// In a freeze, when all pages of a lazy restart are there: from here on the successor watches. What is
    /// dirty by now stays so.
    pub fn hand_over(&mut self, mappings: &[Vma]) {
        let Some(successor) = self.successor.take() else {
            // Its marks are soft-dirty bits, or there are none.
            if !backend::protects() {
                self.let_go(mappings);
            }
            return;
        };
        match pages::scan(&mut self.pagemap, mappings, false) {
            Ok(scan) => self.dirty = self.dirty.union(&scan.written).union(&self.unmarked),
            Err(_) => self.lost = true,
        }
        self.unmarked = PageSet::new();
        self.let_go(mappings);
        self.uffd = Some(successor);
        self.register(mappings);
        // All marks went with the registration.
        if self.scan(mappings).is_err() {
            self.lost = true;
        }
    }

    /// Ends the watch over all of them.
    fn let_go(&mut self, mappings: &[Vma]) {
        let Some(uffd) = self.uffd.take() else { return };
        for vma in mappings.iter().filter(|v| may_be_watched(v)) {
            // What is not registered needs no letting go.
            let _ = uffd.unregister(vma.start, vma.end - vma.start);
        }
    }

    /// Ends watching if the process has nearly as many mappings as it may have: it must not have to do without the next one
    /// for our sake. Returns how many, the first time.
    pub fn leave_if_crowded(&mut self) -> Option<usize> {
        // A process that is gone is seen by the freeze.
        let count = map_count::of(reached_by(self.pid)).unwrap_or(0);
        if self.crowded || !map_count::is_near(count) {
            return None;
        }
        self.crowded = true;
        // The kernel joins what was kept apart when nobody has it any more.
        (self.uffd, self.successor) = (None, None);
        Some(count)
    }

    /// Whether this is still the same address space: same process, no other program executed. That whoever shared the memory with
    /// it may still have it.
    pub fn is_current(&self) -> bool {
        let stat = |pid| ProcDir::process(pid).stat();
        let same = stat(self.pid).is_ok_and(|stat| stat.start_time() == self.start_time);
        let program = || stat(reached_by(self.pid)).is_ok_and(|stat| stat.program() == self.program);
        same && self.pagemap.is_of_memory() && program()
    }

    /// Whether the chain holds it.
    pub fn is_saved(&self) -> bool {
        self.held.is_some()
    }

    /// The next generation has no parent: nothing of this space is held.
    pub fn forget(&mut self) {
        self.held = None;
        self.compared.forget();
    }

    /// The private mappings of the process, as far as tracking needs to know them, while it runs.
    pub fn mappings(&self) -> io::Result<Vec<Vma>> {
        mappings(self.pid)
    }

    /// Has private memory watched that is not, and counts all of it as written. It may be new; or it was watched until the
    /// program moved another mapping beside it: the kernel makes one of the two, takes that from its userfaultfd
    /// (`mremap_userfaultfd_prep`), and leaves the marks where they were. A write no longer changes such a mark, so each is
    /// taken off.
    ///
    /// What is watched is not registered again: if it is let go only now, the next look finds it.
    pub fn take_up(&mut self, mappings: &[Vma]) -> io::Result<()> {
        let Some(uffd) = &self.uffd else { return Ok(()) };
        let mut private: Vec<&Vma> = mappings.iter().filter(|v| may_be_watched(v)).collect();
        if let (true, Some(held)) = (planted::is("unarmed-mapping"), &self.held) {
            private.retain(|v| held.saved.contains(v.start / 4096));
        }
        let mut found = Vec::new();
        for group in private.chunk_by(|one, next| one.end == next.start) {
            let (start, end) = (group[0].start, group[group.len() - 1].end);
            match self.pagemap.unprotected(start, end, |r| found.push(r.start / 4096..r.end / 4096)) {
                // Without PAGEMAP_SCAN no marks are looked at either.
                Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => return Ok(()),
                looked => looked?,
            }
        }
        let found: PageSet = found.into_iter().collect();
        let watch = |pages: &PageSet| {
            pages.runs().iter().all(|run| {
                let (start, length) = (run.start * 4096, (run.end - run.start) * 4096);
                let done = uffd.register(start, length, MODE_WP).and_then(|()| uffd.unprotect(start, length));
                // Not with marks that are left: it is found again. What is not registered needs no letting go.
                let _ = done.as_ref().map_err(|_| uffd.unregister(start, length));
                done.is_ok()
            })
        };
        let mut unwatched = Vec::new();
        // Neighbours in one call, all or none of them; then one by one.
        for run in found.runs() {
            if !watch(&std::iter::once(run.clone()).collect()) {
                let first = private.partition_point(|v| v.pages().end <= run.start);
                let within = private[first..].iter().take_while(|v| v.pages().start < run.end);
                let refused =
                    within.filter(|v| !watch(&found.intersection(&std::iter::once(v.pages()).collect())));
                unwatched.extend(refused.map(|v| v.pages()));
            }
        }
        self.unwatched = unwatched.into_iter().collect();
        self.taken_up = self.taken_up.union(&found);
        Ok(())
    }

    /// Has private memory watched for writes, while it stands still; returns the mappings that another userfaultfd watches. What refuses for
    /// another reason is compared each time.
    pub fn register<'v>(&mut self, mappings: &'v [Vma]) -> Vec<&'v Vma> {
        let Some(uffd) = &self.uffd else { return Vec::new() };
        let mut foreign = Vec::new();
        let mut unwatched = Vec::new();
        let mut private: Vec<&Vma> = mappings.iter().filter(|v| may_be_watched(v)).collect();
        if let (true, Some(held)) = (planted::is("unarmed-mapping"), &self.held) {
            private.retain(|v| held.saved.contains(v.start / 4096));
        }
        // Neighbours in one call, all or none of them; then one by one.
        let neighbours = private.chunk_by(|one, next| one.end == next.start);
        let refused = neighbours.filter(|group| {
            let (start, end) = (group[0].start, group[group.len() - 1].end);
            group.len() == 1 || uffd.register(start, end - start, MODE_WP).is_err()
        });
        for &vma in refused.flatten() {
            if let Err(error) = uffd.register(vma.start, vma.end - vma.start, MODE_WP) {
                unwatched.push(vma.pages());
                if error.raw_os_error() == Some(libc::EBUSY) {
                    foreign.push(vma);
                }
            }
        }
        self.unwatched = unwatched.into_iter().collect();
        foreign
    }

    /// Whether a watched mapping is watched by our userfaultfd. One that is not to be is let go: it has come, beside the
    /// program, to where another one had been when the mappings were read.
    pub fn is_ours(&self, vma: &Vma) -> bool {
        let let_go = |uffd: &Uffd| uffd.let_go(vma.start, vma.end - vma.start);
        self.uffd.as_ref().is_some_and(|uffd| may_be_watched(vma) || let_go(uffd))
    }

    /// Scans, re-arms, and returns what this round has to copy of what is watched: what is dirty now and, in the first
    /// round of a checkpoint, or after one that is not to be relied on, what was reported without being committed.
    pub fn round(&mut self, mappings: &[Vma]) -> io::Result<PageSet> {
        let first = !self.has_begun();
        let scanned = self.scan(mappings);
        let Scan { populated, written, guards } = scanned.inspect_err(|_| self.lost = true)?;
        let watched = populated.difference(&self.compared.pages);
        let written = written.difference(&self.compared.pages);
        let taken_up = std::mem::take(&mut self.taken_up);
        let fresh = if (self.held.is_none() && first) || self.lost {
            watched.clone()
        } else {
            written.union(&std::mem::take(&mut self.unmarked)).union(&taken_up.intersection(&watched))
        };
        let to_copy = if first { fresh.union(&self.dirty) } else { fresh.clone() };
        self.dirty = self.dirty.union(&fresh);
        self.lost = false;
        let mut to_copy = to_copy.union(&std::mem::take(&mut self.missed)).intersection(&watched);
        if planted::is("skipped-page") && self.held.is_some() {
            let middle = to_copy.runs().get(to_copy.runs().len() / 2).map(|r| r.start..r.start + 1);
            to_copy = to_copy.difference(&middle.into_iter().collect());
        }
        self.handed = self.handed.union(&to_copy);
        self.compared.replace(&to_copy);
        self.guards = guards;
        self.pending = Some(populated);
        self.reported = Some(written);
        Ok(to_copy)
    }

    /// Looks at everything, and protects what is watched.
    fn scan(&mut self, mappings: &[Vma]) -> io::Result<Scan> {
        self.compared.pages = PageSet::new();
        let is_watched =
            |v: &&Vma| !self.crowded && may_be_watched(v) && !self.unwatched.contains(v.start / 4096);
        let (watched, others): (Vec<&Vma>, Vec<&Vma>) = mappings.iter().partition(is_watched);
        let owned = |vmas: Vec<&Vma>| vmas.into_iter().cloned().collect::<Vec<_>>();
        let compared: PageSet = others.iter().filter(|v| v.is_private_memory()).map(|v| v.pages()).collect();
        let (watched, others) = (owned(watched), owned(others));
        let pagemap = &mut self.pagemap;
        if self.soft_dirty {
            let scan = soft_dirty::scan(pagemap, mappings, true)?;
            soft_dirty::clear(reached_by(self.pid))?;
            self.compared.pages = scan.populated.intersection(&compared);
            return Ok(scan);
        }
        let scanned = pages::scan(pagemap, &watched, self.uffd.is_some())
            // A scan that protects passes over what is not watched, without a word.
            .and_then(|scan| Ok(scan.and(&pages::scan(pagemap, &others, false)?)));
        let scan = match scanned {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => soft_dirty::scan(pagemap, mappings, false)?,
            scanned => scanned?,
        };
        self.compared.pages = scan.populated.intersection(&compared);
        Ok(scan)
    }

    /// Pages that are not watched, of the last scan: handed out to be compared.
    pub fn to_compare(&mut self) -> PageSet {
        let pages = self.compared.pages.clone();
        self.handed = self.handed.union(&pages);
        pages
    }

    /// In the freeze: all of them at once. Returns the ones that cannot be read.
    pub fn all_differing(
        &mut self,
        memory: &Forced,
        each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<PageSet> {
        self.handed = self.handed.union(&self.compared.pages);
        self.compared.all_differing(reached_by(self.pid), memory, each)
    }

    /// Hands those of consecutive pages on that are not what the chain holds; returns how many.
    pub fn differing(
        &mut self,
        first_page: u64,
        bytes: &[u8],
        each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        self.compared.differing(first_page, bytes, each)
    }

    /// What the last scan reported as written, of what is watched; once.
    pub fn take_reported(&mut self) -> Option<PageSet> {
        self.reported.take()
    }

    /// Of these pages, those of mappings that are watched, or of none any more.
    pub fn without_compared(&self, pages: &PageSet) -> PageSet {
        pages.difference(&self.compared.pages)
    }

    /// Pages of the last round that could not be read; gone by now, or not readable at all.
    pub fn missed(&mut self, pages: PageSet) {
        self.missed = pages;
    }

    /// Guard pages that the last round found.
    pub fn guards(&self) -> &PageSet {
        &self.guards
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
    pub fn gone(&mut self, mappings: &[Vma], unfilled: &PageSet) -> Gone {
        let Some(populated) = &self.pending else { return Gone::default() };
        let of = |file: bool| -> PageSet {
            let vmas = mappings.iter().filter(|v| v.is_private_memory() && (v.kind() == Kind::File) == file);
            vmas.map(Vma::pages).collect()
        };
        let (anonymous, of_file) = (of(false), of(true));
        let nothing = Held::default();
        let held = self.held.as_ref().unwrap_or(&nothing);
        // What an earlier round of this checkpoint wrote may be gone again by its last one.
        let absent = held.saved.union(&self.handed).difference(populated).difference(unfilled);
        let zero = absent.intersection(&anonymous);
        let no_longer_zero = held.zero.difference(populated);
        let back_to_file = absent.union(&no_longer_zero).intersection(&of_file);
        self.next = Held {
            saved: populated.union(unfilled),
            zero: no_longer_zero.intersection(&anonymous).union(&zero),
        };
        let unless = |bug, pages| if planted::is(bug) { PageSet::new() } else { pages };
        Gone { zero: unless("lost-zero", zero), back_to_file: unless("lost-back-to-file", back_to_file) }
    }

    /// The generation with this checkpoint's pages is durable: nothing is dirty relative to it.
    pub fn committed(&mut self) {
        self.dirty = PageSet::new();
        if self.pending.take().is_some() {
            self.compared.committed();
            self.held = Some(std::mem::take(&mut self.next));
        }
    }

    /// A checkpoint begins: its first round copies all that is dirty since the last commit.
    pub fn begin(&mut self) {
        self.pending = None;
        self.handed = PageSet::new();
        self.compared.begin();
    }

    /// What this checkpoint's rounds have copied is not to be relied on: the next round copies it again.
    pub fn again(&mut self) {
        self.pending = None;
    }
}

/// The private mappings of a process, without their flags.
pub fn mappings(pid: Pid) -> io::Result<Vec<Vma>> {
    let raws = vma::parse(&ProcDir::process(reached_by(pid)).text("maps")?)?;
    let private = raws.iter().filter(|r| !r.is_shared() && !vdso::is_kernel_made(&r.name));
    Ok(private.map(vma::Raw::to_private).collect())
}

/// Whether writes to this mapping are found by write protection; see [`super::compared`].
pub fn may_be_watched(vma: &Vma) -> bool {
    vma.is_private_memory() && vma.kind() == Kind::Anonymous && vma.huge_page == 0
}

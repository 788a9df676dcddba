//! The only place that sees both what eBPF logs and what scans find.
//!
//! ```text
//!  attach ─▶ scan ─▶ copy ─▶ outlook ─▶ scan ─▶ copy ─▶ outlook ─▶ freeze with the last scan ─▶ thaw ─▶ detach
//!            └─ log of one window ──────┘compare└─ log of one window ───┘compare
//! ```
//! Before a scan the log says what it will find: that decides whether it is worth another round. After it the two are
//! compared and the differences counted. What is saved comes from the scans alone: a log that lies or loses costs
//! rounds, or a longer freeze. A log that missed much is not asked again until it has been right once more.

use super::fault_log::{FaultLog, LIMIT};
use super::precopy::{self, Next, Outlook, SMALL};
use super::space::Space;
use crate::memory::runs::PageSet;
use crate::sys::bpf::{Attached, BpfError};
use crate::task::iterators::Kernel;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often the ring is emptied while pages are copied: it holds 170 000 faults, and a processor makes a million a
/// second.
const EVERY: Duration = Duration::from_millis(2);

/// Test hook: a log that is wrong and does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nothing was written.
    Silent,
    /// Twenty thousand pages were that nobody knows.
    Wild,
}

/// What the log and the scans of one checkpoint came to. Counts of pages, but for `lost`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Written to, by the log.
    pub logged: u64,
    /// Faults that the ring or the log had no room for.
    pub lost: u64,
    /// In a scan and not in the log: written by the kernel for a peer, part of a huge page, or lost.
    pub unlogged: u64,
    /// In the log and not in the scan after it: unmapped or dropped since. They are not saved.
    pub gone: u64,
}

/// The log beside the scans, from one checkpoint to the next.
#[derive(Debug, Default)]
pub struct Reconcile {
    lie: Option<Lie>,
    /// The first round of the last checkpoint was small: no second one is to be expected, and nothing is attached.
    quiet: bool,
    /// The log missed much of what the last scan found.
    distrusted: bool,
    warned: bool,
    watch: Option<Watch>,
    counts: Option<Counts>,
}

/// While the programs are attached.
struct Watch {
    kernel: Kernel,
    _attached: Attached,
    /// Since the last scan began.
    log: FaultLog,
    /// The one before it, up to then.
    closed: FaultLog,
    since: Instant,
    heard: Instant,
    /// The kernel's counter of lost faults, as of the last look.
    lost: u64,
    /// The spaces that are watched. `None`: not scanned yet. Else pages that the last scan found and whose faults came
    /// in while it went on: it is not known whether they were written before it came by or after, or both.
    spaces: HashMap<Pid, Option<PageSet>>,
    lie: Option<Lie>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Reconcile {
    pub fn new(lie: Option<Lie>) -> Self {
        Self { lie, ..Self::default() }
    }

    /// The first round of a checkpoint is about to begin: write faults of these processes are logged until
    /// [`Self::thawed`] or [`Self::detach`]. Where that cannot be, and where no second round is to be expected, the
    /// scans decide alone.
    pub fn attach(&mut self, kernel: &Kernel, spaces: &[Pid]) {
        self.counts = None;
        self.watch = None;
        if self.quiet {
            return;
        }
        match kernel.attach_faults(spaces) {
            Ok(Some(attached)) => self.watch = Some(Watch::new(kernel, attached, spaces, self.lie)),
            Ok(None) => {}
            // It will not be there for the scan either; that a program was refused is said already.
            Err(BpfError::NoProcess(_) | BpfError::NotLoaded { .. }) => {}
            Err(error) if !self.warned => {
                log::warn!("write faults are not reported, rounds go by what the last one found: {error}");
                self.warned = true;
            }
            Err(_) => {}
        }
    }

    /// A scan of every space begins.
    pub fn scan_begins(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.listen();
            watch.begin();
        }
    }

    /// It is done: what was logged before it is compared with what it found.
    pub fn scanned(&mut self, spaces: &mut [Space]) {
        if let Some(watch) = &mut self.watch {
            watch.listen();
        }
        self.compare(spaces, Duration::MAX);
    }

    /// Pages are being copied: to be called often.
    pub fn listen(&mut self) {
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.heard.elapsed() >= EVERY) {
            watch.listen();
        }
    }

    /// What comes after rounds that found so many pages each, the pages of the last having been copied.
    pub fn next(&mut self, found: &[u64]) -> Next {
        self.quiet = found.first().is_some_and(|&pages| pages < SMALL);
        if let Some(watch) = &mut self.watch {
            watch.listen();
        }
        precopy::next(found, self.outlook())
    }

    fn outlook(&self) -> Option<Outlook> {
        let watch = self.watch.as_ref().filter(|watch| !self.distrusted && watch.log.lost() == 0)?;
        let half = watch.since.elapsed() / 2;
        Some(Outlook { residue: watch.log.written(), late: watch.log.written_since(half) })
    }

    /// The freeze with its scan is over: compares once more, and nothing is attached any longer.
    pub fn thawed(&mut self, spaces: &mut [Space]) {
        let Some(watch) = &mut self.watch else { return };
        // What is heard from now on may have been written after the thaw.
        let until = watch.heard - watch.since;
        watch.listen();
        watch.begin();
        self.compare(spaces, until);
        self.detach();
    }

    /// Nothing is attached any longer.
    pub fn detach(&mut self) {
        self.watch = None;
    }

    /// Of the last checkpoint, once it was thawed; `None` when no faults were logged.
    pub fn counts(&self) -> Option<Counts> {
        self.counts
    }

    /// Compares the log that ended with a scan with what that found. Pages heard of later than `until` count only if
    /// it found them.
    fn compare(&mut self, spaces: &mut [Space], until: Duration) {
        let Some(watch) = &mut self.watch else { return };
        let counts = self.counts.get_or_insert_default();
        let mut unlogged = None;
        for space in spaces {
            let Some(scanned) = space.take_reported() else { continue };
            let Some(known) = watch.spaces.get_mut(&space.pid) else { continue };
            let meanwhile = watch.log.pages(space.pid, Duration::MAX).intersection(&scanned);
            if let Some(before) = known.replace(meanwhile.clone()) {
                let late = watch.closed.pages(space.pid, Duration::MAX).intersection(&scanned);
                let logged = watch.closed.pages(space.pid, until).union(&late).union(&meanwhile);
                let logged = space.without_compared(&logged);
                counts.logged += logged.len();
                counts.gone += gone(&logged, &scanned, &before);
                *unlogged.get_or_insert(0) += scanned.difference(&logged).len();
            }
        }
        counts.lost += watch.closed.lost();
        if let Some(unlogged) = unlogged {
            counts.unlogged += unlogged;
            self.distrusted = unlogged >= SMALL;
        }
    }
}

/// Pages that were logged, and that neither the scan after that nor the one before it (`before`) tells of.
fn gone(logged: &PageSet, scanned: &PageSet, before: &PageSet) -> u64 {
    logged.difference(scanned).difference(before).len()
}

impl Watch {
    fn new(kernel: &Kernel, attached: Attached, spaces: &[Pid], lie: Option<Lie>) -> Self {
        let now = Instant::now();
        // What an earlier checkpoint left in the ring is old.
        let (_, lost) = kernel.write_faults();
        Self {
            kernel: kernel.clone(),
            _attached: attached,
            log: FaultLog::new(LIMIT),
            closed: FaultLog::new(LIMIT),
            since: now,
            heard: now,
            lost,
            spaces: spaces.iter().map(|&pid| (pid, None)).collect(),
            lie,
        }
    }

    /// A new log.
    fn begin(&mut self) {
        self.since = Instant::now();
        self.closed = std::mem::replace(&mut self.log, FaultLog::new(LIMIT));
    }

    /// Takes in what was reported since the last call.
    fn listen(&mut self) {
        let (faults, lost) = self.kernel.write_faults();
        self.heard = Instant::now();
        let at = self.heard - self.since;
        let log = &mut self.log;
        log.lose(lost.saturating_sub(std::mem::replace(&mut self.lost, lost)));
        match self.lie {
            None => {
                let known = faults.iter().map(|f| (Pid::from_raw(f.own_tgid as i32), f.page / 4096));
                known.filter(|f| self.spaces.contains_key(&f.0)).for_each(|f| log.add(f.0, f.1, at));
            }
            Some(Lie::Silent) => {}
            Some(Lie::Wild) => {
                self.spaces.keys().for_each(|&pid| (0..20_000).for_each(|page| log.add(pid, page, at)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set() -> impl Strategy<Value = PageSet> {
        prop::collection::vec((0u64..60, 1u64..6).prop_map(|(s, n)| s..s + n), 0..12)
            .prop_map(|runs| runs.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_logged_page_is_found_explained_or_gone(logged in set(), scanned in set(), before in set()) {
            let explained = logged.difference(&scanned).intersection(&before).len();
            let found = logged.intersection(&scanned).len();
            prop_assert_eq!(found + explained + gone(&logged, &scanned, &before), logged.len());
        }
    }
}

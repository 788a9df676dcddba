//! Which pages the program has written to since the last scan protected them, by its write faults, and in which order.
//!
//! A hint, for [`super::reconcile`] alone: stores through `get_user_pages` leave no trace here, a huge page is one
//! fault, events are lost when a ring is full. It is bounded; what it has no room for is lost, too.

use crate::memory::runs::PageSet;
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Pages remembered of all spaces together: 512 MiB written during one round, in some 4 MiB of ours.
pub const LIMIT: usize = 1 << 17;

/// The first write to a page after a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Address / 4096.
    pub page: u64,
    /// When it was heard of, counted from the scan.
    pub at: Duration,
}

/// The first touches of all spaces since one scan.
#[derive(Debug)]
pub struct FaultLog {
    limit: usize,
    held: usize,
    lost: u64,
    spaces: HashMap<Pid, Touched>,
}

#[derive(Debug, Default)]
struct Touched {
    order: Vec<Touch>,
    pages: HashSet<u64>,
}

impl FaultLog {
    /// An empty one that remembers up to `limit` pages.
    pub fn new(limit: usize) -> Self {
        Self { limit, held: 0, lost: 0, spaces: HashMap::new() }
    }

    /// A process wrote to a page; `at` does not go back from one call to the next.
    pub fn add(&mut self, pid: Pid, page: u64, at: Duration) {
        let touched = self.spaces.entry(pid).or_default();
        if touched.pages.contains(&page) {
            return;
        }
        if self.held == self.limit {
            self.lost += 1;
            return;
        }
        self.held += 1;
        touched.pages.insert(page);
        touched.order.push(Touch { page, at });
    }

    /// So many writes are not known.
    pub fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// How many writes are not known.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// How many pages were written to.
    pub fn written(&self) -> u64 {
        self.held as u64
    }

    /// Of these, the ones whose first write was heard of at `from` or later.
    pub fn written_since(&self, from: Duration) -> u64 {
        let late = |touched: &Touched| touched.order.len() - touched.order.partition_point(|t| t.at < from);
        self.spaces.values().map(|touched| late(touched) as u64).sum()
    }

    /// The pages of one process in the order in which they were first written to.
    pub fn first_touches(&self, pid: Pid) -> &[Touch] {
        self.spaces.get(&pid).map_or(&[], |touched| &touched.order)
    }

    /// Of these, the ones heard of at `until` or earlier, as a set.
    pub fn pages(&self, pid: Pid, until: Duration) -> PageSet {
        let early = self.first_touches(pid).iter().take_while(|touch| touch.at <= until);
        let mut pages: Vec<u64> = early.map(|touch| touch.page).collect();
        pages.sort_unstable();
        pages.into_iter().map(|page| page..page + 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_first_touches_in_order_within_its_limit(
            events in prop::collection::vec((1i32..4, 0u64..40), 0..200),
            limit in 0usize..60,
            from in 0u64..200,
        ) {
            let mut log = FaultLog::new(limit);
            let mut model: Vec<(i32, u64, u64)> = Vec::new();
            let mut lost = 0;
            for (at, &(pid, page)) in (0u64..).zip(&events) {
                log.add(Pid::from_raw(pid), page, Duration::from_millis(at));
                if !model.iter().any(|m| (m.0, m.1) == (pid, page)) {
                    if model.len() < limit { model.push((pid, page, at)) } else { lost += 1 }
                }
            }
            prop_assert_eq!((log.written(), log.lost()), (model.len() as u64, lost));
            let late = model.iter().filter(|m| m.2 >= from).count() as u64;
            prop_assert_eq!(log.written_since(Duration::from_millis(from)), late);
            for pid in 1..4 {
                let order: Vec<u64> = model.iter().filter(|m| m.0 == pid).map(|m| m.1).collect();
                let touches = log.first_touches(Pid::from_raw(pid));
                prop_assert_eq!(touches.iter().map(|t| t.page).collect::<Vec<_>>(), order.clone());
                let mut set = PageSet::new();
                for (_, page, _) in model.iter().filter(|m| m.0 == pid && m.2 <= from) {
                    set.insert(*page..page + 1);
                }
                prop_assert_eq!(log.pages(Pid::from_raw(pid), Duration::from_millis(from)), set);
            }
        }
    }
}

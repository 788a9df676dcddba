//! Events that tell of their changes in another order than these were made.
//!
//! ```text
//!  thread 1   mremap(A → B): moves ──────────────▶ waits: Remap(A → B) ─▶ waits: Unmap(A)
//!  thread 2        mremap(X → the hole at A): moves ─▶ waits: Remap(X → A) ─▶ …
//! ```
//! The kernel makes a change first and queues its event when it has let go of the address space. So another thread may be given
//! a place, and its event may be read, while the one that left the place has not told so, or not all of it: a move leaves
//! by Remap, and says so once more by Unmap. A thread gives no place away that it has not been given: whoever knows a place
//! for what came last has it from a call that has returned, all of whose events were read. So:
//! - The Unmap that follows a Remap is owed. It takes nothing with it: all has left by the Remap.
//! - What comes to a place that is still held by what the events have told has come behind it, and what leaves next from there
//!   is the older one.
//!
//! Once no change is under way ([`Uffd::is_changing`](crate::sys::uffd::Uffd::is_changing)) nothing is late. Until then nothing can
//! be filled.
//!
//! **Not told apart**, each only while a thread is kept from queueing its event, with other changes under way all the time: what
//! comes to a place, and is done with, and leaves it again before the one that left it first has said its first word;
//! what is unmapped from a place of which another Unmap is owed, when a third has come and left by the time that is read;
//! and a leaver of memory that has grown since the restart, or that MREMAP_DONTUNMAP has left empty just now, when what came
//! lies in that alone: no event tells that it is held.

use super::pending::{Part, Pending};
use crate::memory::runs::PageSet;
use std::ops::Range;

/// What is held, and what may yet be told of it.
#[derive(Debug, Default)]
pub struct Late {
    /// Where something is that has not left, by what the events have told.
    held: PageSet,
    /// Where two are: what came last, and what has left without a word of it yet.
    twice: PageSet,
    /// What of the older ones has not arrived.
    older: Pending,
    /// Where those went that came too early, each as a whole.
    early: Vec<Range<u64>>,
    /// Unmaps that follow a Remap.
    owed: Vec<Range<u64>>,
    /// What else was unmapped since anything is owed, and nothing has come there.
    unmapped: PageSet,
}

fn set(range: &Range<u64>) -> PageSet {
    std::iter::once(range.clone()).collect()
}

impl Late {
    /// `held`: the pages of all mappings that are watched.
    pub fn new(held: PageSet) -> Self {
        Self { held, ..Self::default() }
    }

    /// Where something is by what the events have told: in a copy of the address space as well.
    pub fn held(&self) -> &PageSet {
        &self.held
    }

    /// How many pages have not arrived of what has left without a word of it yet.
    pub fn waiting(&self) -> u64 {
        self.older.len()
    }

    /// Whether nothing is known to be late.
    pub fn is_settled(&self) -> bool {
        self.owed.is_empty() && self.twice.is_empty() && self.early.is_empty()
    }

    /// No change is under way. What is still owed never comes: that move has left empty memory behind (MREMAP_DONTUNMAP).
    pub fn settle(&mut self) {
        let left: PageSet = self.owed.drain(..).collect();
        *self = Self::new(self.held.union(&left.difference(&self.unmapped)));
    }

    /// Unmap.
    pub fn unmap(&mut self, pending: &mut Pending, range: &Range<u64>) {
        match self.owed.iter().position(|owed| owed == range) {
            Some(index) => drop(self.owed.swap_remove(index)),
            None => {
                self.leave(pending, range);
                self.unmapped.insert(range.clone());
            }
        }
        if self.owed.is_empty() {
            self.unmapped = PageSet::new();
        }
    }

    /// Remap of `count` pages.
    pub fn remap(&mut self, pending: &mut Pending, from: u64, to: u64, count: u64) {
        let (source, target) = (from..from + count, to..to + count);
        // What a move has left as empty memory (MREMAP_DONTUNMAP) owes nothing more.
        let is_left = self.held.intersection(&set(&source)).is_empty() && self.owed.contains(&source);
        let moved = self.leave(pending, &source);
        if !is_left {
            self.owed.push(source);
        }
        let there = self.held.intersection(&set(&target));
        if !there.is_empty() {
            // Of three, the second is not kept.
            let displaced = there.difference(&self.twice);
            displaced
                .runs()
                .iter()
                .flat_map(|run| pending.remove(run))
                .for_each(|part| self.older.put(&part));
            self.twice = self.twice.union(&there);
            self.early.push(target.clone());
        }
        pending.remove(&target);
        moved.into_iter().for_each(|part| {
            let start = part.pages.start - from + to;
            pending.put(&Part { pages: start..start + part.count(), origin: part.origin });
        });
        self.unmapped = self.unmapped.difference(&set(&target));
        self.held.insert(target);
    }

    /// Takes out what leaves `range`.
    fn leave(&mut self, pending: &mut Pending, range: &Range<u64>) -> Vec<Part> {
        let older = self.twice.intersection(&set(range));
        // One call leaves all of the range: what has come to a part of it since stays with all of it.
        let came_later = self.early.iter().filter(|early| !older.intersection(&set(early)).is_empty());
        let stays = came_later.cloned().collect::<PageSet>().intersection(&set(range)).union(&older);
        let leaves = set(range).difference(&stays);
        let mut gone: Vec<Part> = older.runs().iter().flat_map(|run| self.older.remove(run)).collect();
        gone.extend(leaves.runs().iter().flat_map(|run| pending.remove(run)));
        self.twice = self.twice.difference(&older);
        let twice = &self.twice;
        self.early.retain(|early| !twice.intersection(&set(early)).is_empty());
        self.held = self.held.difference(&leaves);
        gone
    }
}

#[cfg(test)]
#[path = "late_tests.rs"]
mod tests;

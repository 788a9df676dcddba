//! Runs of pages in which a later insertion wins over what was there. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Where a page of this generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Page `index` of block number `block`; a run goes on within the block.
    Stored {
        block: u32,
        index: u16,
    },
    Zero,
    BackToFile,
}

impl Entry {
    /// The entry of the page `pages` further on in the same run.
    pub(super) fn advance(self, pages: u64) -> Entry {
        match self {
            Entry::Stored { block, index } => Entry::Stored { block, index: index + pages as u16 },
            other => other,
        }
    }
}

/// `count` pages from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryRun {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) entry: Entry,
}

impl EntryRun {
    pub(super) fn pages(&self) -> Range<u64> {
        self.first..self.first + self.count
    }

    /// The part of this run that covers `pages`, which must lie inside it.
    pub(super) fn part(&self, pages: &Range<u64>) -> EntryRun {
        let entry = self.entry.advance(pages.start - self.first);
        EntryRun { first: pages.start, count: pages.end - pages.start, entry }
    }

    /// Whether `next` goes on where this run ends, in pages and in storage.
    fn continues_with(&self, next: &EntryRun) -> bool {
        self.first + self.count == next.first && self.entry.advance(self.count) == next.entry
    }
}

/// The pages of one space put so far.
#[derive(Default)]
pub(super) struct Overlay {
    runs: BTreeMap<u64, (u64, Entry)>,
}

impl Overlay {
    pub(super) fn insert(&mut self, run: EntryRun) {
        let pages = run.pages();
        if let Some((&first, &(count, entry))) = self.runs.range(..pages.start).next_back()
            && first + count > pages.start
        {
            self.runs.insert(first, (pages.start - first, entry));
            self.keep_tail(EntryRun { first, count, entry }, pages.end);
        }
        while let Some((&first, &(count, entry))) = self.runs.range(pages.clone()).next() {
            self.runs.remove(&first);
            self.keep_tail(EntryRun { first, count, entry }, pages.end);
        }
        self.runs.insert(run.first, (run.count, run.entry));
    }

    fn keep_tail(&mut self, old: EntryRun, from: u64) {
        let end = old.pages().end;
        if end > from {
            let tail = old.part(&(from..end));
            self.runs.insert(tail.first, (tail.count, tail.entry));
        }
    }

    /// The runs in order, neighbours joined where page numbers and storage go on.
    pub(super) fn into_runs(self) -> Vec<EntryRun> {
        let mut joined: Vec<EntryRun> = Vec::with_capacity(self.runs.len());
        for (first, (count, entry)) in self.runs {
            let run = EntryRun { first, count, entry };
            match joined.last_mut() {
                Some(last) if last.continues_with(&run) => last.count += run.count,
                _ => joined.push(run),
            }
        }
        joined
    }
}

//! Which page of a space comes from where, over a whole chain.

use super::overlay::{Entry, EntryRun};
use super::{Generation, SpaceId, ranges};
use std::ops::Range;

/// Where the contents of a page are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Page `index` of the block at file offset `block` of the chain's generation number `generation` (0: newest).
    Stored { generation: usize, block: u64, index: u16 },
    /// Zeros.
    Zero,
    /// What the mapped file has: not in the image.
    BackToFile,
}

impl Source {
    /// The source of the page `pages` further on in the same run.
    #[must_use]
    pub fn advance(self, pages: u64) -> Source {
        match self {
            Source::Stored { generation, block, index } => {
                Source::Stored { generation, block, index: index.saturating_add(pages as u16) }
            }
            other => other,
        }
    }
}

/// `count` pages of one source; a stored run lies within one block, so that it has at most 16 pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    pub first_page: u64,
    pub count: u64,
    pub source: Source,
}

impl Run {
    /// The page numbers.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        self.first_page..self.first_page + self.count
    }

    /// The part of this run inside `pages`, if any.
    #[must_use]
    pub fn clip(&self, pages: &Range<u64>) -> Option<Run> {
        let (start, end) = (self.first_page.max(pages.start), self.pages().end.min(pages.end));
        let source = self.source.advance(start.saturating_sub(self.first_page));
        (start < end).then(|| Run { first_page: start, count: end - start, source })
    }
}

/// The pages of one space: runs sorted by page, not overlapping. Pages in no run are not in the image: they were
/// never touched, or belong to a mapped file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageMap {
    runs: Vec<Run>,
}

impl PageMap {
    /// Lays the generations of a chain, newest first, over each other.
    ///
    /// A page is taken from the newest generation that has it, unless it was not alive in that generation or in any
    /// newer one: what was unmapped in between is gone, whatever is mapped there now.
    pub(super) fn over(generations: &[Generation], space: SpaceId) -> PageMap {
        let mut open = vec![ranges::ALL];
        let mut runs = Vec::new();
        for (number, generation) in generations.iter().enumerate() {
            open = ranges::intersect(&open, generation.index.live(space));
            let Some(here) = generation.index.spaces.get(&space) else { continue };
            open = ranges::cover(&open, &here.runs, EntryRun::pages, |run, part| {
                let run = run.part(&part);
                let source = match run.entry {
                    Entry::Stored { block, index } => {
                        let block = generation.index.blocks[block as usize].offset;
                        Source::Stored { generation: number, block, index }
                    }
                    Entry::Zero => Source::Zero,
                    Entry::BackToFile => Source::BackToFile,
                };
                runs.push(Run { first_page: run.first, count: run.count, source });
            });
        }
        runs.sort_unstable_by_key(|run| run.first_page);
        PageMap { runs }
    }

    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The whole run that holds `page`.
    #[must_use]
    pub fn run_at(&self, page: u64) -> Option<Run> {
        let at = self.runs.partition_point(|run| run.pages().end <= page);
        self.runs.get(at).filter(|run| run.first_page <= page).copied()
    }

    /// The source of one page.
    #[must_use]
    pub fn get(&self, page: u64) -> Option<Source> {
        self.iter_range(page, 1).next().map(|run| run.source)
    }

    /// The runs within `count` pages from `first` on, cut to them.
    pub fn iter_range(&self, first: u64, count: u64) -> impl Iterator<Item = Run> + '_ {
        let pages = first..first.saturating_add(count);
        let from = self.runs.partition_point(|run| run.pages().end <= pages.start);
        self.runs[from..].iter().map_while(move |run| run.clip(&pages))
    }

    /// Only what is stored in these generations of the chain (0: newest), for an order of reading by age.
    #[must_use]
    pub fn stored_in(&self, generations: Range<usize>) -> PageMap {
        let wanted = |run: &&Run| matches!(run.source, Source::Stored { generation, .. } if generations.contains(&generation));
        PageMap { runs: self.runs.iter().filter(wanted).copied().collect() }
    }

    /// Pages that have contents in the chain.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.runs.iter().filter(|run| matches!(run.source, Source::Stored { .. })).map(|run| run.count).sum()
    }
}

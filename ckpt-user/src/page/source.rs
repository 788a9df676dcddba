//! Where the pages of a lazy restart come from.

use crate::image::{Chain, ImageError, PageMap, PageReader, Run, Source, SpaceId};
use crate::memory::runs::PageSet;
use std::collections::HashMap;
use std::ops::Range;

/// Why a page cannot be had; the message names the generation and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("page {page:#x} of address space {space} is not in the image")]
    Absent { space: u32, page: u64 },
}

/// Gives contents of pages. Page numbers are those of the image.
pub trait PageSource: Send {
    /// The contents of as many pages from `first` on as `out` has room for (4096 bytes each).
    ///
    /// # Errors
    /// When they are damaged or cannot be had; `out` then holds nothing that may be used.
    fn read(&mut self, space: SpaceId, first: u64, out: &mut [u8]) -> Result<(), SourceError>;

    /// `page` and those of its neighbours that cost least once it has been read.
    fn neighbours(&self, space: SpaceId, page: u64) -> Range<u64>;

    /// All pages of a space in the order in which they are best filled in.
    fn order(&self, space: SpaceId) -> Vec<Range<u64>>;
}

/// A chain of generations on this machine. Its shared locks keep prune away as long as it lives.
pub struct ChainSource {
    chain: Chain,
    reader: PageReader,
    maps: HashMap<SpaceId, PageMap>,
}

impl ChainSource {
    /// For the pages of `spaces`.
    pub fn new(chain: &Chain, spaces: impl IntoIterator<Item = SpaceId>) -> Self {
        let maps = spaces.into_iter().map(|space| (space, chain.pages(space))).collect();
        Self { chain: chain.clone(), reader: chain.reader(), maps }
    }

    fn run_of(&self, space: SpaceId, page: u64) -> Option<Run> {
        let run = self.maps.get(&space)?.run_at(page)?;
        matches!(run.source, Source::Stored { .. }).then_some(run)
    }
}

impl PageSource for ChainSource {
    fn read(&mut self, space: SpaceId, first: u64, out: &mut [u8]) -> Result<(), SourceError> {
        let mut page = first;
        let mut left = out;
        while !left.is_empty() {
            let pages = page..page + (left.len() / 4096) as u64;
            let absent = SourceError::Absent { space: space.0, page };
            let run = self.run_of(space, page).and_then(|run| run.clip(&pages)).ok_or(absent)?;
            let (bytes, rest) = left.split_at_mut(run.count as usize * 4096);
            self.reader.read_run(&run, bytes)?;
            page += run.count;
            left = rest;
        }
        Ok(())
    }

    fn neighbours(&self, space: SpaceId, page: u64) -> Range<u64> {
        self.run_of(space, page).map_or(page..page + 1, |run| run.pages())
    }

    fn order(&self, space: SpaceId) -> Vec<Range<u64>> {
        let Some(map) = self.maps.get(&space) else { return Vec::new() };
        // What was written last is what the program works on.
        let ages = 0..self.chain.generations().len();
        ages.flat_map(|age| {
            let set: PageSet = map.stored_in(age..age + 1).runs().iter().map(Run::pages).collect();
            set.runs().to_vec()
        })
        .collect()
    }
}

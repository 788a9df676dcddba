//! Writes one generation.
//!
//! ```text
//! create ─▶ put_pages, put_zero, put_back_to_file, set_spaces (any order) ─▶ commit ─▶ 000007.ckpt
//!    └───────────────────────── drop or error ─▶ the temporary file is unlinked, nothing happened
//! ```

use super::block::BLOCK_PAGES;
use super::compress::{CHUNK_PAGES, Chunk, Pipeline};
use super::footer::{Extent, FOOTER, Footer, MAX_INDEX, MAX_METADATA, MAX_SUMMARY};
use super::header::{FEATURE_LZ4, Header};
use super::index::{BlockRow, Index, SpaceIndex};
use super::overlay::{Entry, EntryRun, Overlay};
use super::publish::{Naming, Temporary};
use super::{Codec, ImageError, Kind, PAGE_LIMIT, PAGE_SIZE, SpaceId, Summary, ranges};
use prost::Message;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// A generation that is durable and has its name.
#[derive(Clone, Debug)]
pub struct Committed {
    pub path: PathBuf,
    /// As stored, with the writer's counts filled in.
    pub summary: Summary,
}

/// A generation being written. All file-system calls happen in the thread that calls.
pub struct GenerationWriter {
    header: Header,
    header_extent: Extent,
    temporary: Temporary,
    pipeline: Pipeline,
    /// Where the next pages go.
    chunk: Chunk,
    /// Blocks written, and where the file ends.
    blocks: Vec<BlockRow>,
    end: u64,
    spaces: BTreeMap<SpaceId, Overlay>,
    live: Option<BTreeMap<SpaceId, Vec<Range<u64>>>>,
}

impl GenerationWriter {
    /// Begins generation `header.id` in a temporary file in `dir`.
    ///
    /// `workers`: compression threads, started at the first MiB; 0 compresses in the caller's.
    ///
    /// # Errors
    /// `Misuse` for a header that no reader would take; `Full`, `ReadOnly`, `Io` from the file system.
    pub fn create(
        dir: &Path,
        mut header: Header,
        codec: Codec,
        workers: usize,
    ) -> Result<GenerationWriter, ImageError> {
        if codec == Codec::Lz4 && !header.features.iter().any(|name| name == FEATURE_LZ4) {
            header.features.push(FEATURE_LZ4.into());
        }
        header.check().map_err(ImageError::Misuse)?;
        let temporary = Temporary::create(dir, header.id)?;
        let bytes = header.encode();
        let mut pipeline = Pipeline::new(codec, workers);
        let mut writer = GenerationWriter {
            header,
            header_extent: Extent::of(0, &bytes),
            temporary,
            chunk: pipeline.empty(0),
            pipeline,
            blocks: Vec::new(),
            end: 0,
            spaces: BTreeMap::new(),
            live: None,
        };
        writer.write(&bytes)?;
        Ok(writer)
    }

    /// Stores pages of `space` from `first_page` on; `bytes` is a multiple of [`PAGE_SIZE`] long.
    ///
    /// A page of zeros costs no contents. Of two puts of one page the later one counts.
    ///
    /// # Errors
    /// `Misuse` for a length or page number out of bounds; `Full`, `Io` from the file system; `WorkerGone`.
    pub fn put_pages(&mut self, space: SpaceId, first_page: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
        if !rest.is_empty() {
            return Err(ImageError::Misuse(format!("{} bytes are not whole pages", bytes.len())));
        }
        check_pages(first_page, pages.len() as u64)?;
        let mut at = 0;
        while let Some(page) = pages.get(at) {
            let zero = *page == ZERO_PAGE;
            let count = pages[at..].iter().take_while(|page| (**page == ZERO_PAGE) == zero).count();
            let first = first_page + at as u64;
            if zero {
                self.insert(space, EntryRun { first, count: count as u64, entry: Entry::Zero });
            } else {
                self.store(space, first, &pages[at..at + count])?;
            }
            at += count;
        }
        Ok(())
    }

    /// Says that `count` pages from `first` on are all zeros.
    ///
    /// # Errors
    /// `Misuse` for page numbers out of bounds.
    pub fn put_zero(&mut self, space: SpaceId, first: u64, count: u64) -> Result<(), ImageError> {
        self.put_entry(space, first, count, Entry::Zero)
    }

    /// Says that `count` pages from `first` on of a private file mapping are the file's again.
    ///
    /// # Errors
    /// `Misuse` for page numbers out of bounds.
    pub fn put_back_to_file(&mut self, space: SpaceId, first: u64, count: u64) -> Result<(), ImageError> {
        self.put_entry(space, first, count, Entry::BackToFile)
    }

    /// Says which spaces exist and which of their pages are alive (mapped) at this generation.
    ///
    /// Pages outside these ranges are neither kept from this generation nor inherited by it; spaces that are not
    /// named have no pages. Without this call every page of every space is alive. The ranges may come in any
    /// order and overlap; a second call replaces the first.
    ///
    /// # Errors
    /// `Misuse` for page numbers out of bounds.
    pub fn set_spaces(&mut self, spaces: &[(SpaceId, Vec<Range<u64>>)]) -> Result<(), ImageError> {
        let mut live: BTreeMap<SpaceId, Vec<Range<u64>>> = BTreeMap::new();
        for (space, ranges) in spaces {
            if ranges.iter().any(|range| range.end > PAGE_LIMIT) {
                return Err(ImageError::Misuse(format!("live pages of {space:?} beyond the address space")));
            }
            live.entry(*space).or_default().extend_from_slice(ranges);
        }
        for ranges in live.values_mut() {
            *ranges = ranges::normalise(ranges);
        }
        self.live = Some(live);
        Ok(())
    }

    /// Writes index, metadata, summary and footer, makes the file durable, asks `check_lease` whether this writer
    /// may still write here, and gives the file its name.
    ///
    /// # Errors
    /// `Exists` when the id is taken, `Lease` with the reason of `check_lease`, `Full` and the like; in each case the
    /// temporary file is gone and earlier generations are as they were.
    pub fn commit(
        self,
        metadata: &[u8],
        summary: Summary,
        check_lease: impl FnOnce() -> Result<(), String>,
    ) -> Result<Committed, ImageError> {
        self.finish(metadata, summary, Naming::New, check_lease)
    }

    pub(super) fn finish(
        mut self,
        metadata: &[u8],
        summary: Summary,
        naming: Naming,
        check_lease: impl FnOnce() -> Result<(), String>,
    ) -> Result<Committed, ImageError> {
        self.drain()?;
        let index = self.take_index();
        let index_bytes = index.encode();
        let index_extent = Extent::of(self.end, &index_bytes);
        let metadata_extent = Extent::of(index_extent.end(), metadata);
        let mut summary = self.complete(summary, &index);
        summary.bytes_stored = u64::MAX;
        summary.bytes_stored = metadata_extent.end() + (summary.encoded_len() + FOOTER) as u64;
        let summary_bytes = summary.encode_to_vec();
        let summary_extent = Extent::of(metadata_extent.end(), &summary_bytes);
        let sizes =
            [(&index_extent, MAX_INDEX), (&metadata_extent, MAX_METADATA), (&summary_extent, MAX_SUMMARY)];
        if let Some((section, limit)) = sizes.iter().find(|(section, limit)| section.length > *limit) {
            let what = format!("a section of {} bytes, more than a reader takes ({limit})", section.length);
            return Err(ImageError::Misuse(what));
        }
        let footer = Footer {
            header: self.header_extent,
            index: index_extent,
            metadata: metadata_extent,
            summary: summary_extent,
            id: self.header.id,
        };
        for bytes in [&index_bytes, metadata, &summary_bytes, &footer.encode()] {
            self.write(bytes)?;
        }
        let path = self.temporary.publish(self.header.id, naming, check_lease)?;
        Ok(Committed { path, summary })
    }

    /// Owner of the file being written.
    pub(super) fn owner_uid(&self) -> Result<u32, ImageError> {
        let metadata = self.temporary.file.metadata();
        metadata
            .map(|found| found.uid())
            .map_err(|error| ImageError::io("read", self.temporary.path(), error))
    }

    /// Copies a whole block of another generation (header and payload, checked by the caller) without decompressing
    /// it; gives its number. Only before the first put.
    pub(super) fn copy_block(&mut self, pages: u8, bytes: &mut [u8]) -> Result<u32, ImageError> {
        let number = self.chunk.first_block;
        super::block::seal(number, bytes);
        let stored = (bytes.len() - super::block::BLOCK_HEADER) as u32;
        self.blocks.push(BlockRow { offset: self.end, stored, pages });
        self.chunk.first_block = after(number, 1)?;
        self.write(bytes)?;
        Ok(number)
    }

    /// Adds a run of the index as it is.
    pub(super) fn insert(&mut self, space: SpaceId, run: EntryRun) {
        self.spaces.entry(space).or_default().insert(run);
    }

    pub(super) fn put_entry(
        &mut self,
        space: SpaceId,
        first: u64,
        count: u64,
        entry: Entry,
    ) -> Result<(), ImageError> {
        check_pages(first, count)?;
        if count > 0 {
            self.insert(space, EntryRun { first, count, entry });
        }
        Ok(())
    }

    /// Appends pages, none of them zero, to the open chunk.
    fn store(&mut self, space: SpaceId, first: u64, pages: &[[u8; PAGE_SIZE]]) -> Result<(), ImageError> {
        let mut at = 0;
        while at < pages.len() {
            let filled = self.chunk.raw.len() / PAGE_SIZE;
            let (block, index) = (filled / BLOCK_PAGES, filled % BLOCK_PAGES);
            let count = (pages.len() - at).min(BLOCK_PAGES - index);
            self.chunk.raw.extend_from_slice(pages[at..at + count].as_flattened());
            let entry = Entry::Stored { block: self.chunk.first_block + block as u32, index: index as u16 };
            self.insert(space, EntryRun { first: first + at as u64, count: count as u64, entry });
            at += count;
            if filled + count == CHUNK_PAGES {
                self.close_chunk()?;
            }
        }
        Ok(())
    }

    fn close_chunk(&mut self) -> Result<(), ImageError> {
        let blocks = self.chunk.raw.len().div_ceil(BLOCK_PAGES * PAGE_SIZE) as u32;
        let empty = self.pipeline.empty(after(self.chunk.first_block, blocks)?);
        let chunk = std::mem::replace(&mut self.chunk, empty);
        if let Some(done) = self.pipeline.push(chunk)? {
            self.append(done)?;
        }
        Ok(())
    }

    /// Writes everything that is on its way.
    fn drain(&mut self) -> Result<(), ImageError> {
        if !self.chunk.raw.is_empty() {
            self.close_chunk()?;
        }
        while let Some(done) = self.pipeline.pop()? {
            self.append(done)?;
        }
        Ok(())
    }

    fn append(&mut self, chunk: Chunk) -> Result<(), ImageError> {
        let start = self.end;
        self.blocks.extend(chunk.rows.iter().map(|row| BlockRow { offset: start + row.offset, ..*row }));
        self.write(&chunk.encoded)?;
        self.pipeline.recycle(chunk);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let written = self.temporary.file.write_all(bytes);
        written.map_err(|error| ImageError::io("write", self.temporary.path(), error))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// The index of what was put, cut to what is alive.
    fn take_index(&mut self) -> Index {
        let blocks = std::mem::take(&mut self.blocks);
        let mut index = Index { blocks, spaces: BTreeMap::new(), live_known: self.live.is_some() };
        for (space, live) in self.live.take().into_iter().flatten() {
            index.spaces.insert(space, SpaceIndex { live, runs: Vec::new() });
        }
        for (space, overlay) in std::mem::take(&mut self.spaces) {
            let mut runs = Vec::new();
            ranges::cover(index.live(space), &overlay.into_runs(), EntryRun::pages, |run, part| {
                runs.push(run.part(&part));
            });
            if !runs.is_empty() {
                index.spaces.entry(space).or_default().runs = runs;
            }
        }
        index
    }

    fn complete(&self, mut summary: Summary, index: &Index) -> Summary {
        let count = |wanted: fn(&Entry) -> bool| -> u64 {
            let runs = index.spaces.values().flat_map(|space| &space.runs);
            runs.filter(|run| wanted(&run.entry)).map(|run| run.count).sum()
        };
        summary.kind = if self.header.parent.is_some() { Kind::Delta } else { Kind::Full }.into();
        summary.pages = count(|entry| matches!(entry, Entry::Stored { .. }));
        summary.zero_pages = count(|entry| *entry == Entry::Zero);
        summary.back_to_file_pages = count(|entry| *entry == Entry::BackToFile);
        let stored: u64 = index.blocks.iter().map(|block| u64::from(block.pages)).sum();
        summary.dead_pages = stored.saturating_sub(summary.pages);
        summary
    }
}

fn check_pages(first: u64, count: u64) -> Result<(), ImageError> {
    match first.checked_add(count) {
        Some(end) if end <= PAGE_LIMIT => Ok(()),
        _ => Err(ImageError::Misuse(format!("{count} pages at {first} lie beyond the address space"))),
    }
}

/// The block number `blocks` after `number`, which the 32-bit field of a run must still hold.
fn after(number: u32, blocks: u32) -> Result<u32, ImageError> {
    let next = number.checked_add(blocks);
    next.ok_or_else(|| ImageError::Misuse("more than 256 TiB in one generation".into()))
}

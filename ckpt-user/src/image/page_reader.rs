//! Reads pages out of a chain. One reader per thread.

use super::block::{self, BLOCK_BYTES};
use super::{Generation, ImageError, PAGE_SIZE, Run, Source};
use std::sync::Arc;

/// Reads and checks whole blocks and keeps the last one, so that neighbours of a page cost a copy.
pub struct PageReader {
    generations: Arc<Vec<Generation>>,
    /// Generation and block number of what `pages` holds.
    held: Option<(usize, usize)>,
    pages: Vec<u8>,
    bytes: Vec<u8>,
}

impl PageReader {
    pub(super) fn new(generations: Arc<Vec<Generation>>) -> PageReader {
        PageReader { generations, held: None, pages: vec![0; BLOCK_BYTES], bytes: Vec::new() }
    }

    /// Reads the whole of `run` into `out`, which is as long as its pages.
    ///
    /// # Errors
    /// As [`PageReader::read`].
    pub fn read_run(&mut self, run: &Run, out: &mut [u8]) -> Result<(), ImageError> {
        self.read(&run.source, run.count, out)
    }

    /// Reads `count` pages from `source` on into `out`, which is `count` × [`PAGE_SIZE`] bytes long.
    ///
    /// # Errors
    /// `Refused` when the block is damaged, `Io` when it cannot be read; `Misuse` for a source that is not of this
    /// chain, goes beyond its block, or is [`Source::BackToFile`], whose contents are in the mapped file. After an
    /// error `out` holds nothing that may be used.
    pub fn read(&mut self, source: &Source, count: u64, out: &mut [u8]) -> Result<(), ImageError> {
        if count.checked_mul(PAGE_SIZE as u64) != Some(out.len() as u64) {
            return Err(ImageError::Misuse(format!("{} bytes for {count} pages", out.len())));
        }
        let (generation, offset, index) = match *source {
            Source::Stored { generation, block, index } => (generation, block, usize::from(index)),
            Source::Zero => {
                out.fill(0);
                return Ok(());
            }
            Source::BackToFile => {
                return Err(ImageError::Misuse("pages of a mapped file are not in the image".into()));
            }
        };
        let foreign = || ImageError::Misuse(format!("{source:?} and {count} pages are not of this chain"));
        let holder = self.generations.get(generation).ok_or_else(foreign)?;
        let number = holder.index.block_at(offset).ok_or_else(foreign)?;
        let row = holder.index.blocks[number];
        let length = usize::from(row.pages) * PAGE_SIZE;
        let part = index * PAGE_SIZE..index * PAGE_SIZE + out.len();
        if part.end > length {
            return Err(foreign());
        }
        if self.held != Some((generation, number)) {
            holder.read_block(&row, &mut self.bytes)?;
            // A whole block goes straight to where it is wanted.
            let whole = out.len() == length;
            let target = if whole { &mut *out } else { &mut self.pages[..length] };
            if !whole {
                self.held = None;
            }
            block::decode(number as u32, row.pages, &self.bytes, target)
                .map_err(|what| holder.damaged_block(what))?;
            if whole {
                return Ok(());
            }
            self.held = Some((generation, number));
        }
        out.copy_from_slice(&self.pages[part]);
        Ok(())
    }
}

//! One opened generation: everything but the page blocks is read and checked.

use super::block::{self, BLOCK_BYTES};
use super::error::{Fault, Section};
use super::footer::{Extent, FOOTER, Footer};
use super::header::{self, Header};
use super::index::{BlockRow, Index};
use super::{ImageError, Kind, PAGE_SIZE, Summary};
use prost::Message;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// A generation whose header, footer, index, metadata and summary have been checked.
#[derive(Debug)]
pub struct Generation {
    path: PathBuf,
    file: File,
    header: Header,
    summary: Summary,
    metadata: Vec<u8>,
    owner_uid: u32,
    file_length: u64,
    pub(super) index: Index,
}

impl Generation {
    /// Opens the generation in `path`.
    ///
    /// # Errors
    /// `Refused` with what is wrong with the file, `Io` when it cannot be opened or read.
    pub fn open(path: &Path) -> Result<Generation, ImageError> {
        Generation::open_with(path, 0)
    }

    /// Opens the generation that has this name in a job's directory: not through a symbolic link.
    pub(super) fn open_in_directory(path: &Path) -> Result<Generation, ImageError> {
        Generation::open_with(path, libc::O_NOFOLLOW)
    }

    fn open_with(path: &Path, flags: i32) -> Result<Generation, ImageError> {
        // Without waiting at a FIFO that has the name of a generation.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | flags).open(path);
        Generation::from_file(file.map_err(|error| ImageError::io("open", path, error))?, path)
    }

    /// Reads the generation in `file`, which the caller opened (perhaps with other ids); `path` is for messages.
    ///
    /// # Errors
    /// As [`Generation::open`].
    pub fn from_file(file: File, path: &Path) -> Result<Generation, ImageError> {
        let refused = |fault| ImageError::refused(path, fault);
        let metadata = file.metadata().map_err(|error| ImageError::io("read", path, error))?;
        if !metadata.is_file() {
            return Err(refused(Fault::NotAnImage));
        }
        let source = Bytes { file: &file, path };
        let header = source.header(metadata.len())?;
        let footer = source.footer(metadata.len())?;
        if footer.id != header.0.id || footer.header != header.1 {
            return Err(refused(Fault::damaged(Section::Footer, "it belongs to another header")));
        }
        let header = header.0;
        let index = source.section(Section::Index, &footer.index)?;
        let index = Index::decode(&index, footer.header.end()..footer.index.offset)
            .map_err(|what| refused(Fault::damaged(Section::Index, what)))?;
        let summary = source.section(Section::Summary, &footer.summary)?;
        let summary = Summary::decode(summary.as_slice())
            .map_err(|error| refused(Fault::damaged(Section::Summary, error.to_string())))?;
        let kind = if header.parent.is_some() { Kind::Delta } else { Kind::Full };
        if summary.kind != i32::from(kind) {
            return Err(refused(Fault::damaged(Section::Summary, "its kind contradicts the header")));
        }
        let (owner_uid, file_length) = (metadata.uid(), metadata.len());
        let metadata = source.section(Section::Metadata, &footer.metadata)?;
        let path = path.to_path_buf();
        Ok(Generation { path, file, header, summary, metadata, owner_uid, file_length, index })
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What the writer's caller gave to `commit`: opaque here.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The path it was opened by, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner of the opened file (fstat), whatever is at its path now.
    #[must_use]
    pub fn owner_uid(&self) -> u32 {
        self.owner_uid
    }

    #[must_use]
    pub fn file_length(&self) -> u64 {
        self.file_length
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn damaged_block(&self, what: String) -> ImageError {
        ImageError::refused(&self.path, Fault::damaged(Section::Block, what))
    }

    /// Reads block `number`, header and payload, into `bytes`; unchecked.
    pub(super) fn read_block(&self, row: &BlockRow, bytes: &mut Vec<u8>) -> Result<(), ImageError> {
        bytes.resize(row.length(), 0);
        self.file.read_exact_at(bytes, row.offset).map_err(|error| ImageError::io("read", &self.path, error))
    }

    /// Reads block `number` into `bytes` and compares its checksum.
    pub(super) fn check_block(&self, number: usize, bytes: &mut Vec<u8>) -> Result<(), ImageError> {
        let row = &self.index.blocks[number];
        self.read_block(row, bytes)?;
        block::check(number as u32, row.pages, bytes).map_err(|what| self.damaged_block(what))
    }

    /// Checks and decompresses every block; calls `progress` with the bytes read by each.
    pub(super) fn check_blocks(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ImageError> {
        let (mut bytes, mut pages) = (Vec::new(), vec![0; BLOCK_BYTES]);
        for (number, row) in (0..).zip(&self.index.blocks) {
            self.read_block(row, &mut bytes)?;
            let out = &mut pages[..usize::from(row.pages) * PAGE_SIZE];
            block::decode(number, row.pages, &bytes, out).map_err(|what| self.damaged_block(what))?;
            progress(bytes.len() as u64);
        }
        Ok(())
    }
}

/// Reads the header of `path` alone, for a file that does not open.
pub(super) fn header_of(path: &Path) -> Option<Header> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Bytes { file: &file, path }.header(metadata.len()).ok().map(|(header, _)| header)
}

/// A file that is not trusted.
struct Bytes<'a> {
    file: &'a File,
    path: &'a Path,
}

impl Bytes<'_> {
    /// `length` bytes at `offset`; the caller has bounded both by the file's length.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, ImageError> {
        let failed = |error| ImageError::io("read", self.path, error);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|error| failed(error.into()))?;
        bytes.resize(length, 0);
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes)
    }

    fn header(&self, file_length: u64) -> Result<(Header, Extent), ImageError> {
        let refused = |fault| ImageError::refused(self.path, fault);
        let prefix = self.read(0, header::PREFIX.min(file_length as usize))?;
        let length = header::header_length(&prefix, file_length).map_err(refused)?;
        let bytes = self.read(0, length)?;
        Ok((Header::decode(&bytes).map_err(refused)?, Extent::of(0, &bytes)))
    }

    fn footer(&self, file_length: u64) -> Result<Footer, ImageError> {
        let Some(offset) = file_length.checked_sub(FOOTER as u64) else {
            return Err(ImageError::refused(
                self.path,
                Fault::Incomplete { what: "its end is missing".into() },
            ));
        };
        let bytes = self.read(offset, FOOTER)?;
        Footer::decode(&bytes, file_length).map_err(|fault| ImageError::refused(self.path, fault))
    }

    fn section(&self, section: Section, extent: &Extent) -> Result<Vec<u8>, ImageError> {
        let bytes = self.read(extent.offset, extent.length as usize)?;
        if xxh3_64(&bytes) != extent.checksum {
            return Err(ImageError::refused(
                self.path,
                Fault::damaged(section, "its checksum does not match"),
            ));
        }
        Ok(bytes)
    }
}

//! Generations and chains on disk.
//!
//! ```text
//! GenerationWriter ──put_*──▶ temporary ──commit: index, metadata, summary, footer, fdatasync──▶ 000007.ckpt
//! Chain::open ◀── 000007.ckpt ◀─parent─ 000006.ckpt ◀─parent─ … (newest page wins, cut by live ranges)
//!      └─▶ pages(space) ─▶ PageMap ─▶ PageReader::read
//! prune: oldest kept generation becomes a full one (same id), then the older ones go, oldest last
//! ```
//!
//! Invariants:
//! - No pid, no ptrace, no eBPF in here; works on any machine, without root.
//! - A file is never trusted: lengths are bounded by the file's, checksums come before use, every field is
//!   validated; a crafted file gives an error, never a panic or an allocation larger than the file.
//! - A generation exists only once its last byte is durable and its name is in place: [`publish`] is the one
//!   module that renames.
//! - Compression runs in threads; every file-system call is made by the caller's thread, which may run with
//!   another user's file-system ids.
//!
//! The byte layout is drawn above the constants of `header`, `block`, `index` and `footer`, and as a whole in
//! docs/format.md.

mod block;
mod chain;
mod compress;
mod error;
mod fields;
mod footer;
pub(crate) mod fuzz;
mod generation;
mod header;
mod index;
mod list;
mod merge;
mod overlay;
mod page_map;
mod page_reader;
mod plan;
mod prune;
mod publish;
mod ranges;
mod summary;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use chain::{Chain, Opened};
pub use error::{Fault, ImageError, Section};
pub use generation::Generation;
pub use header::{FEATURES, FORMAT_VERSION, Header};
pub use list::{Listed, list, missing, next_id};
pub use page_map::{PageMap, Run, Source};
pub use page_reader::PageReader;
pub use prune::{PruneReport, Unsound, prune, prune_while};
pub use publish::{clean_temporaries, file_name, is_temporary};
pub use summary::{Kind, Summary, rfc3339};
pub use verify::{VerifiedGeneration, VerifyReport, verify};
pub use writer::{Committed, GenerationWriter};

/// Bytes of a page; the format knows no other size.
pub const PAGE_SIZE: usize = 4096;

/// Page numbers are below this: a 64-bit address or offset divided by [`PAGE_SIZE`].
pub const PAGE_LIMIT: u64 = 1 << 52;

/// A generation's number within its directory, from 1; numbers only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct GenerationId(pub u64);

impl std::fmt::Display for GenerationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One address space, or one shared memory object; who it belongs to is said by the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct SpaceId(pub u32);

/// How page blocks are stored; a block that does not get smaller is stored raw in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Lz4,
    None,
}

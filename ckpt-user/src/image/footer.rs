//! The footer: where everything is; its last bytes are the proof that the file is whole.

use super::GenerationId;
use super::error::{Fault, Section};
use super::fields::Fields;
use xxhash_rust::xxh3::xxh3_64;

// Layout, little-endian, the last 128 bytes of the file:
//
//   0              24             48             72             96            104        112      120
//   ┌──────────────┬──────────────┬──────────────┬──────────────┬─────────────┬──────────┬────────┬────────┐
//   │ header       │ index        │ metadata     │ summary      │ file length │ id       │ XXH3   │ magic  │
//   │ offset u64   │ offset u64   │ offset u64   │ offset u64   │ u64         │ u64      │ u64    │ 8 B    │
//   │ length u64   │ length u64   │ length u64   │ length u64   │             │          │        │        │
//   │ XXH3   u64   │ XXH3   u64   │ XXH3   u64   │ XXH3   u64   │             │          │        │        │
//   └──────────────┴──────────────┴──────────────┴──────────────┴─────────────┴──────────┴────────┴────────┘
//   The blocks lie between header and index. Sections follow each other without gaps, the footer follows the
//   summary. XXH3 at 112: of the 112 bytes before it.

pub(super) const FOOTER: usize = 128;
const MAGIC: [u8; 8] = *b"\x89CKPEND\n";

/// Bounds on what a reader allocates for a section, whatever a (sparse) file claims.
/// 1 GiB of index describes 4 TiB of memory in whole blocks.
pub(super) const MAX_INDEX: u64 = 1 << 30;
pub(super) const MAX_METADATA: u64 = 1 << 28;
pub(super) const MAX_SUMMARY: u64 = 1 << 16;

/// Where a section lies, and its XXH3-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) checksum: u64,
}

impl Extent {
    pub(super) fn of(offset: u64, bytes: &[u8]) -> Extent {
        Extent { offset, length: bytes.len() as u64, checksum: xxh3_64(bytes) }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) header: Extent,
    pub(super) index: Extent,
    pub(super) metadata: Extent,
    pub(super) summary: Extent,
    pub(super) id: GenerationId,
}

impl Footer {
    pub(super) fn file_length(&self) -> u64 {
        self.summary.end().saturating_add(FOOTER as u64)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER);
        for section in [&self.header, &self.index, &self.metadata, &self.summary] {
            for word in [section.offset, section.length, section.checksum] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.file_length().to_le_bytes());
        out.extend_from_slice(&self.id.0.to_le_bytes());
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        out
    }

    /// `bytes`: the last [`FOOTER`] bytes of a file of `file_length` bytes.
    pub(super) fn decode(bytes: &[u8], file_length: u64) -> Result<Footer, Fault> {
        let damaged = |what: &str| Fault::damaged(Section::Footer, what);
        if !bytes.ends_with(&MAGIC) {
            return Err(Fault::Incomplete { what: "its end is missing".into() });
        }
        let mut fields = Fields::new(bytes);
        let read = |fields: &mut Fields<'_>| {
            let mut section =
                || Some(Extent { offset: fields.u64()?, length: fields.u64()?, checksum: fields.u64()? });
            let (header, index, metadata, summary) = (section()?, section()?, section()?, section()?);
            let length = fields.u64()?;
            let footer = Footer { header, index, metadata, summary, id: GenerationId(fields.u64()?) };
            Some((footer, length, fields.u64()?))
        };
        let Some((footer, length, checksum)) = read(&mut fields) else {
            return Err(damaged("too short"));
        };
        if xxh3_64(&bytes[..112]) != checksum {
            return Err(damaged("its checksum does not match"));
        }
        if length != file_length {
            let what = format!("it was {length} bytes and is {file_length}");
            return Err(Fault::Incomplete { what });
        }
        let adjacent = footer.header.offset == 0
            && footer.header.end() <= footer.index.offset
            && footer.index.end() == footer.metadata.offset
            && footer.metadata.end() == footer.summary.offset
            && footer.file_length() == file_length;
        if !adjacent {
            return Err(damaged("its sections overlap or leave gaps"));
        }
        let bounds =
            [(&footer.index, MAX_INDEX), (&footer.metadata, MAX_METADATA), (&footer.summary, MAX_SUMMARY)];
        if bounds.iter().any(|(section, limit)| section.length > *limit) {
            return Err(damaged("a section larger than any writer makes"));
        }
        Ok(footer)
    }
}

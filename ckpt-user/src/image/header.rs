//! The header: what a file is, before anything else in it is believed.

use super::error::{Fault, Section};
use super::fields::Fields;
use super::{GenerationId, PAGE_SIZE};
use xxhash_rust::xxh3::xxh3_64;

// Layout, little-endian:
//
//   0        8         12        16     24       32        48            56      58
//   ┌────────┬─────────┬─────────┬──────┬────────┬─────────┬─────────────┬───────┬──────────────────┬────────┐
//   │ magic  │ version │ length  │ id   │ parent │ job     │ created     │ count │ count × feature  │ XXH3   │
//   │ 8 B    │ u32     │ u32     │ u64  │ u64    │ 16 B    │ i64 Unix ns │ u16   │ u8 length, name  │ 8 B    │
//   └────────┴─────────┴─────────┴──────┴────────┴─────────┴─────────────┴───────┴──────────────────┴────────┘
//   length: of the whole header, checksum included. parent: 0 for a full generation.
//   XXH3: XXH3-64 of every byte before it.

/// As PNG's: a byte with the high bit, letters, CR LF, end-of-file for DOS, LF. A transfer that treats the file
/// as text changes one of them.
pub(super) const MAGIC: [u8; 8] = [0x89, b'C', b'K', b'P', b'\r', b'\n', 0x1a, b'\n'];

/// Version of everything that this reader could not skip; smaller changes are features with names.
pub const FORMAT_VERSION: u32 = 1;

/// Features this reader knows. A file names those without which it would be misread.
pub const FEATURES: &[&str] = &[FEATURE_LZ4];
/// Some blocks are LZ4 blocks.
pub(super) const FEATURE_LZ4: &str = "lz4";

pub(super) const MAX_HEADER: usize = 16 * PAGE_SIZE;
/// Magic, version and length: enough to read the rest.
pub(super) const PREFIX: usize = 16;
const CHECKSUM: usize = 8;

/// Who wrote a generation, and what it builds upon.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Header {
    pub id: GenerationId,
    /// The generation this one holds the changes to; `None`: it is full.
    pub parent: Option<GenerationId>,
    /// Random, the same in all generations of one job.
    pub job: [u8; 16],
    /// Names out of [`FEATURES`] that a reader must know; the writer adds those of the page store itself.
    pub features: Vec<String>,
    /// Nanoseconds since 1970, UTC.
    pub created_unix_ns: i64,
}

impl Header {
    /// Why this header cannot be written, if so.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.id.0 == 0 {
            return Err("generation numbers start at 1".into());
        }
        if self.parent.is_some_and(|parent| parent.0 == 0 || parent >= self.id) {
            return Err(format!("generation {} cannot have parent {:?}", self.id, self.parent));
        }
        match self.features.iter().find(|name| !FEATURES.contains(&name.as_str())) {
            Some(name) => Err(format!("feature {name:?} is not in FEATURES")),
            None => Ok(()),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let names: usize = self.features.iter().map(|name| 1 + name.len()).sum();
        out.extend_from_slice(&((58 + names + CHECKSUM) as u32).to_le_bytes());
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.parent.map_or(0, |parent| parent.0).to_le_bytes());
        out.extend_from_slice(&self.job);
        out.extend_from_slice(&self.created_unix_ns.to_le_bytes());
        out.extend_from_slice(&(self.features.len() as u16).to_le_bytes());
        for name in &self.features {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// `bytes`: the whole header as [`header_length`] bounds it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Header, Fault> {
        let damaged = |what: &str| Fault::damaged(Section::Header, what);
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return Err(damaged("too short"));
        };
        if xxh3_64(body) != u64::from_le_bytes(*checksum) {
            return Err(damaged("its checksum does not match"));
        }
        let short = || damaged("too short");
        let mut fields = Fields::new(body);
        fields.bytes(PREFIX).ok_or_else(short)?;
        let id = GenerationId(fields.u64().ok_or_else(short)?);
        let parent = Some(fields.u64().ok_or_else(short)?).filter(|&id| id != 0).map(GenerationId);
        let job = fields.array().ok_or_else(short)?;
        let created_unix_ns = fields.u64().ok_or_else(short)?.cast_signed();
        let mut features = Vec::new();
        for _ in 0..fields.u16().ok_or_else(short)? {
            let length = fields.u8().ok_or_else(short)?;
            let name = fields.bytes(length.into()).ok_or_else(short)?;
            features.push(String::from_utf8_lossy(name).into_owned());
        }
        if fields.remaining() != 0 {
            return Err(damaged("bytes left over"));
        }
        if let Some(name) = features.iter().find(|name| !FEATURES.contains(&name.as_str())) {
            return Err(Fault::UnknownFeature { name: name.clone() });
        }
        let header = Header { id, parent, job, features, created_unix_ns };
        header.check().map_err(damaged_by)?;
        Ok(header)
    }
}

fn damaged_by(what: String) -> Fault {
    Fault::damaged(Section::Header, what)
}

/// Length of the whole header, out of its first [`PREFIX`] bytes.
pub(super) fn header_length(prefix: &[u8], file_length: u64) -> Result<usize, Fault> {
    if !prefix.starts_with(&MAGIC) {
        return Err(foreign(prefix));
    }
    let mut fields = Fields::new(prefix);
    let words = fields.bytes(MAGIC.len()).and_then(|_| Some((fields.u32()?, fields.u32()?)));
    let Some((version, length)) = words else {
        return Err(Fault::Incomplete { what: "it ends within the header".into() });
    };
    if version > FORMAT_VERSION {
        return Err(Fault::FutureVersion { found: version });
    }
    if version == 0 {
        return Err(Fault::damaged(Section::Header, "format version 0"));
    }
    if u64::from(length) > file_length && length as usize <= MAX_HEADER {
        return Err(Fault::Incomplete { what: "it ends within the header".into() });
    }
    if !(PREFIX + CHECKSUM..=MAX_HEADER).contains(&(length as usize)) {
        return Err(Fault::damaged(Section::Header, format!("a length of {length} bytes")));
    }
    Ok(length as usize)
}

/// Names what happened to a file that does not begin with [`MAGIC`].
fn foreign(start: &[u8]) -> Fault {
    const LETTERS: &[u8] = b"CKP";
    // What is left of 0x89: itself; without its high bit; as UTF-8 from Latin-1; as the replacement character.
    const FIRST: [&[u8]; 4] = [&[0x89], &[0x09], &[0xc2, 0x89], &[0xef, 0xbf, 0xbd]];
    // What is left of CR LF ^Z LF: itself; CR dropped; LF made CR LF; CR made LF; LF made CR.
    const LAST: [&[u8]; 5] = [b"\r\n\x1a\n", b"\n\x1a\n", b"\r\r\n\x1a\r\n", b"\n\n\x1a\n", b"\r\r\x1a\r"];
    for first in FIRST {
        let Some(rest) = start.strip_prefix(first).and_then(|rest| rest.strip_prefix(LETTERS)) else {
            continue;
        };
        if LAST.iter().any(|last| rest.starts_with(last)) {
            return Fault::TextMode;
        }
        return Fault::damaged(Section::Header, "its first bytes");
    }
    Fault::NotAnImage
}

//! Page blocks: the unit of compression, of checksums, and of what one lazy page costs to read.

use super::{Codec, PAGE_SIZE};
use xxhash_rust::xxh3::xxh3_64_with_seed;

// Layout, little-endian; blocks follow each other from the end of the header, without gaps:
//
//   0        8         12       13      14      16
//   ┌────────┬─────────┬────────┬───────┬───────┬───────────────────────┐
//   │ XXH3   │ length  │ codec  │ pages │ 0     │ length bytes          │
//   │ u64    │ u32     │ u8     │ u8    │ u16   │                       │
//   └────────┴─────────┴────────┴───────┴───────┴───────────────────────┘
//   XXH3: XXH3-64 of all bytes behind it, seeded with the block's number in the file, so that a block written to
//   another's place is noticed. codec: 0 raw, 1 LZ4 block without a size prefix. pages: 1…16.

/// 64 KiB: large enough for LZ4 to find matches, small enough to decompress for one faulting page (~50 µs).
pub(super) const BLOCK_PAGES: usize = 16;
pub(super) const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_SIZE;
pub(super) const BLOCK_HEADER: usize = 16;
const CODEC_RAW: u8 = 0;
const CODEC_LZ4: u8 = 1;

/// Compresses blocks; keeps its tables from block to block.
pub(super) struct Encoder {
    codec: Codec,
    scratch: Vec<u8>,
    table: lz4_flex::block::CompressTable,
}

impl Encoder {
    pub(super) fn new(codec: Codec) -> Encoder {
        let scratch = match codec {
            Codec::Lz4 => vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)],
            Codec::None => Vec::new(),
        };
        Encoder { codec, scratch, table: lz4_flex::block::CompressTable::large() }
    }

    /// Appends the block of `raw` (1…16 pages) to `out`; gives the payload's length.
    pub(super) fn encode(&mut self, number: u32, raw: &[u8], out: &mut Vec<u8>) -> u32 {
        // Less than 1/16 saved is not worth a decompression at every read.
        let worth = raw.len() - raw.len() / 16;
        let compressed = match self.codec {
            Codec::Lz4 => lz4_flex::block::compress_into_with_table(raw, &mut self.scratch, &mut self.table)
                .ok()
                .filter(|&length| length <= worth),
            Codec::None => None,
        };
        let (codec, payload) = match compressed {
            Some(length) => (CODEC_LZ4, &self.scratch[..length]),
            None => (CODEC_RAW, raw),
        };
        append(number, codec, (raw.len() / PAGE_SIZE) as u8, payload, out);
        payload.len() as u32
    }
}

/// Appends header and payload.
fn append(number: u32, codec: u8, pages: u8, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[codec, pages, 0, 0]);
    out.extend_from_slice(payload);
    seal(number, &mut out[start..]);
}

/// Writes the checksum of the block `bytes` as number `number` into it.
pub(super) fn seal(number: u32, bytes: &mut [u8]) {
    if let Some((checksum, rest)) = bytes.split_first_chunk_mut::<8>() {
        *checksum = xxh3_64_with_seed(rest, number.into()).to_le_bytes();
    }
}

/// Checks the block `bytes` (header and payload) as number `number`: its checksum and that it says what the
/// index says.
///
/// # Errors
/// What is wrong, as text.
pub(super) fn check(number: u32, pages: u8, bytes: &[u8]) -> Result<(), String> {
    parts(number, pages, bytes).map(|_| ())
}

fn parts(number: u32, pages: u8, bytes: &[u8]) -> Result<(u8, &[u8]), String> {
    let Some((header, payload)) = bytes.split_first_chunk::<BLOCK_HEADER>() else {
        return Err(format!("block {number} is too short"));
    };
    let [c0, c1, c2, c3, c4, c5, c6, c7, l0, l1, l2, l3, codec, said, z0, z1] = *header;
    let checksum = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
    if xxh3_64_with_seed(&bytes[8..], number.into()) != checksum {
        return Err(format!("the checksum of block {number} does not match"));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length != payload.len() || said != pages || [z0, z1] != [0, 0] || codec > CODEC_LZ4 {
        return Err(format!("block {number} contradicts the page index"));
    }
    Ok((codec, payload))
}

/// Decodes the block into `out` (exactly `pages` pages).
///
/// # Errors
/// What is wrong, as text; `out` then holds nothing that may be used.
pub(super) fn decode(number: u32, pages: u8, bytes: &[u8], out: &mut [u8]) -> Result<(), String> {
    let (codec, payload) = parts(number, pages, bytes)?;
    if codec == CODEC_RAW {
        if payload.len() != out.len() {
            return Err(format!("block {number} holds {} bytes instead of {}", payload.len(), out.len()));
        }
        out.copy_from_slice(payload);
        return Ok(());
    }
    match lz4_flex::block::decompress_into(payload, out) {
        Ok(length) if length == out.len() => Ok(()),
        Ok(length) => Err(format!("block {number} holds {length} bytes instead of {}", out.len())),
        Err(error) => Err(format!("block {number} does not decompress: {error}")),
    }
}

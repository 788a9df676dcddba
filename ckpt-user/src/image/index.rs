//! The page index: which pages of which space this generation has, and which were alive.

use super::block::{BLOCK_BYTES, BLOCK_HEADER, BLOCK_PAGES};
use super::fields::Fields;
use super::overlay::{Entry, EntryRun};
use super::ranges;
use super::{PAGE_LIMIT, PAGE_SIZE, SpaceId};
use std::collections::BTreeMap;
use std::ops::Range;

// Layout, little-endian:
//
//   ┌─────────────┬─────────────┬───────────────┬──────────────────────────┬─────────────────┐
//   │ blocks u32  │ spaces u32  │ live known    │ blocks × block row, 4 B  │ spaces × space  │
//   │             │             │ u32, 0 or 1   │                          │                 │
//   └─────────────┴─────────────┴───────────────┴──────────────────────────┴─────────────────┘
//   block row: payload bytes in bits 0–23, pages in bits 24–31. Offsets follow: the blocks lie without gaps.
//
//   space, ascending by id:
//   ┌─────────┬──────────────────┬───────────┬──────────────────────────────────┬─────────────────┐
//   │ id u32  │ live ranges u32  │ runs u64  │ ranges × (first u64, count u64)  │ runs × run row  │
//   └─────────┴──────────────────┴───────────┴──────────────────────────────────┴─────────────────┘
//   Live known 0: every page of every space is alive. 1: only those in a space's live ranges; what is not alive
//   here is not inherited from ancestors. Ranges are sorted and neither overlap nor touch.
//
//   run row, sorted by page, not overlapping, inside the live ranges:
//   63  62 61     52 51          0   63       48 47      32 31          0
//   ┌─────┬─────────┬─────────────┐  ┌──────────┬──────────┬─────────────┐
//   │ kind│    0    │ first page  │  │  count   │  index   │  block      │   kind 0, stored: count ≤ 16
//   └─────┴─────────┴─────────────┘  ├──────────┴──────────┴─────────────┤
//                                    │              count                │   kind 1, zero; kind 2, back to file
//                                    └───────────────────────────────────┘

const RUN_ROW: usize = 16;
const RANGE_ROW: usize = 16;
const SPACE_HEAD: usize = 16;
const KIND_SHIFT: u32 = 62;
const KIND_STORED: u64 = 0;
const KIND_ZERO: u64 = 1;
const KIND_BACK_TO_FILE: u64 = 2;

/// One block of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRow {
    /// Of its header within the file.
    pub(super) offset: u64,
    /// Bytes of its payload.
    pub(super) stored: u32,
    pub(super) pages: u8,
}

impl BlockRow {
    /// Header and payload.
    pub(super) fn length(&self) -> usize {
        BLOCK_HEADER + self.stored as usize
    }
}

/// One space of one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpaceIndex {
    /// Empty where the index knows no live ranges.
    pub(super) live: Vec<Range<u64>>,
    pub(super) runs: Vec<EntryRun>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) blocks: Vec<BlockRow>,
    pub(super) spaces: BTreeMap<SpaceId, SpaceIndex>,
    pub(super) live_known: bool,
}

impl Index {
    /// The pages of `space` that were alive when this generation was written.
    pub(super) fn live(&self, space: SpaceId) -> &[Range<u64>] {
        const EVERYTHING: &[Range<u64>] = &[ranges::ALL];
        if !self.live_known {
            return EVERYTHING;
        }
        self.spaces.get(&space).map_or(&[], |space| &space.live)
    }

    /// The number of the block whose header is at `offset`.
    pub(super) fn block_at(&self, offset: u64) -> Option<usize> {
        self.blocks.binary_search_by_key(&offset, |block| block.offset).ok()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let spaces: usize = self
            .spaces
            .values()
            .map(|s| SPACE_HEAD + s.live.len() * RANGE_ROW + s.runs.len() * RUN_ROW)
            .sum();
        let mut out = Vec::with_capacity(12 + 4 * self.blocks.len() + spaces);
        for word in [self.blocks.len() as u32, self.spaces.len() as u32, u32::from(self.live_known)] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for block in &self.blocks {
            out.extend_from_slice(&(block.stored | u32::from(block.pages) << 24).to_le_bytes());
        }
        for (id, space) in &self.spaces {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&(space.live.len() as u32).to_le_bytes());
            out.extend_from_slice(&(space.runs.len() as u64).to_le_bytes());
            for range in &space.live {
                out.extend_from_slice(&range.start.to_le_bytes());
                out.extend_from_slice(&(range.end - range.start).to_le_bytes());
            }
            for run in &space.runs {
                out.extend_from_slice(&encode_run(run));
            }
        }
        out
    }

    /// Reads an index whose blocks lie in `file` (offsets).
    ///
    /// # Errors
    /// The first thing that is wrong, as text.
    pub(super) fn decode(bytes: &[u8], file: Range<u64>) -> Result<Index, String> {
        let mut fields = Fields::new(bytes);
        let short = || "too short".to_string();
        let blocks = fields.u32().ok_or_else(short)? as usize;
        let spaces = fields.u32().ok_or_else(short)?;
        let live_known = match fields.u32().ok_or_else(short)? {
            0 => false,
            1 => true,
            _ => return Err("an unknown flag".into()),
        };
        let blocks = decode_blocks(fields.bytes(blocks.saturating_mul(4)).ok_or_else(short)?, file)?;
        let mut index = Index { blocks, spaces: BTreeMap::new(), live_known };
        for _ in 0..spaces {
            let id = SpaceId(fields.u32().ok_or_else(short)?);
            if index.spaces.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err("spaces out of order".into());
            }
            let space = decode_space(&mut fields, &index).ok_or_else(short)??;
            index.spaces.insert(id, space);
        }
        if fields.remaining() != 0 {
            return Err("bytes left over".into());
        }
        Ok(index)
    }
}

fn decode_blocks(rows: &[u8], file: Range<u64>) -> Result<Vec<BlockRow>, String> {
    let mut offset = file.start;
    let mut blocks = Vec::with_capacity(rows.len() / 4);
    for row in rows.chunks_exact(4) {
        let word = u32::from_le_bytes([row[0], row[1], row[2], row[3]]);
        let block = BlockRow { offset, stored: word & 0xff_ffff, pages: (word >> 24) as u8 };
        let pages = usize::from(block.pages);
        if !(1..=BLOCK_PAGES).contains(&pages) || !(1..=BLOCK_BYTES).contains(&(block.stored as usize)) {
            return Err(format!("block {} of {pages} pages in {} bytes", blocks.len(), block.stored));
        }
        if block.stored as usize > pages * PAGE_SIZE {
            return Err(format!("block {} is larger than its pages", blocks.len()));
        }
        offset = offset.saturating_add(block.length() as u64);
        blocks.push(block);
    }
    if offset != file.end {
        return Err(format!("its blocks end at byte {offset}, not at {}", file.end));
    }
    Ok(blocks)
}

/// `None`: the bytes end early.
fn decode_space(fields: &mut Fields<'_>, index: &Index) -> Option<Result<SpaceIndex, String>> {
    let ranges = fields.u32()? as usize;
    let runs = usize::try_from(fields.u64()?).ok()?;
    let live = fields.bytes(ranges.checked_mul(RANGE_ROW)?)?;
    let runs = fields.bytes(runs.checked_mul(RUN_ROW)?)?;
    Some(decode_ranges(live).and_then(|live| {
        if !index.live_known && !live.is_empty() {
            return Err("live ranges where none are known".into());
        }
        let runs = decode_runs(runs, &index.blocks)?;
        let everything = [ranges::ALL];
        let bounds = if index.live_known { live.as_slice() } else { &everything };
        let mut inside = 0;
        ranges::cover(bounds, &runs, EntryRun::pages, |_, part| inside += part.end - part.start);
        if inside != runs.iter().map(|run| run.count).sum::<u64>() {
            return Err("runs outside the live ranges".into());
        }
        Ok(SpaceIndex { live, runs })
    }))
}

fn decode_ranges(rows: &[u8]) -> Result<Vec<Range<u64>>, String> {
    let mut live: Vec<Range<u64>> = Vec::with_capacity(rows.len() / RANGE_ROW);
    let mut fields = Fields::new(rows);
    while let (Some(start), Some(count)) = (fields.u64(), fields.u64()) {
        let end = start.checked_add(count).filter(|&end| count > 0 && end <= PAGE_LIMIT);
        let end = end.ok_or_else(|| format!("a live range of {count} pages at {start}"))?;
        if live.last().is_some_and(|last| last.end >= start) {
            return Err("live ranges out of order".into());
        }
        live.push(start..end);
    }
    Ok(live)
}

fn decode_runs(rows: &[u8], blocks: &[BlockRow]) -> Result<Vec<EntryRun>, String> {
    let mut runs: Vec<EntryRun> = Vec::with_capacity(rows.len() / RUN_ROW);
    let mut fields = Fields::new(rows);
    let mut free = 0;
    while let (Some(head), Some(tail)) = (fields.u64(), fields.u64()) {
        let run = decode_run(head, tail, blocks).ok_or_else(|| format!("the run {head:#x} {tail:#x}"))?;
        if run.first < free {
            return Err("runs out of order".into());
        }
        free = run.first + run.count;
        runs.push(run);
    }
    Ok(runs)
}

fn encode_run(run: &EntryRun) -> [u8; RUN_ROW] {
    let (kind, tail) = match run.entry {
        Entry::Stored { block, index } => {
            (KIND_STORED, u64::from(block) | u64::from(index) << 32 | run.count << 48)
        }
        Entry::Zero => (KIND_ZERO, run.count),
        Entry::BackToFile => (KIND_BACK_TO_FILE, run.count),
    };
    let mut row = [0; RUN_ROW];
    row[..8].copy_from_slice(&(kind << KIND_SHIFT | run.first).to_le_bytes());
    row[8..].copy_from_slice(&tail.to_le_bytes());
    row
}

/// `None`: a field out of its bounds.
fn decode_run(head: u64, tail: u64, blocks: &[BlockRow]) -> Option<EntryRun> {
    let first = head & !(3 << KIND_SHIFT);
    let (entry, count) = match head >> KIND_SHIFT {
        KIND_STORED => {
            let (block, index, count) = (tail as u32, (tail >> 32) as u16, tail >> 48);
            let pages = u64::from(blocks.get(block as usize)?.pages);
            if u64::from(index) + count > pages {
                return None;
            }
            (Entry::Stored { block, index }, count)
        }
        KIND_ZERO => (Entry::Zero, tail),
        KIND_BACK_TO_FILE => (Entry::BackToFile, tail),
        _ => return None,
    };
    let end = first.checked_add(count)?;
    (count > 0 && end <= PAGE_LIMIT).then_some(EntryRun { first, count, entry })
}

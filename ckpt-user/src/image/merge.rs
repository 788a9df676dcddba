//! Rewrites a generation as a full one, under the same id.
//!
//! Blocks that are alive as a whole are copied as they are; the living pages of the others are packed anew, so
//! that nothing dead is carried along. What is copied is checked on the way: damage ends the merge before anything
//! is replaced.

use super::block;
use super::header::FEATURE_LZ4;
use super::overlay::{Entry, EntryRun};
use super::publish::{Naming, lock_for_pruning};
use super::{Chain, Codec, Committed, GenerationWriter, ImageError, PAGE_SIZE, PageMap, Source, SpaceId};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

/// A block: its generation in the chain and its offset there.
type Place = (usize, u64);

/// Makes the newest generation of `chain` a full one.
///
/// `check_lease` is asked just before the file is replaced. `goes_on` is asked with how many pages were written, and how many there
/// are. `Ok(None)`: a reader holds the file, or it no longer goes on; nothing changed.
///
/// # Errors
/// `Owner` when the files belong to somebody else; what the writer and the reader report. Nothing changed then.
pub(super) fn merge(
    dir: &Path,
    chain: Chain,
    check_lease: &mut dyn FnMut() -> Result<(), String>,
    goes_on: &dyn Fn(u64, u64) -> bool,
) -> Result<Option<Committed>, ImageError> {
    let newest = chain.newest();
    let path = newest.path().to_path_buf();
    let mut header = newest.header().clone();
    header.parent = None;
    let compressed = |features: &[String]| features.iter().any(|name| name == FEATURE_LZ4);
    let lz4 = chain.generations().iter().any(|generation| compressed(&generation.header().features));
    let codec = if lz4 { Codec::Lz4 } else { Codec::None };
    // In the caller's thread alone: a merge is not worth a core that the program could use.
    let mut writer = GenerationWriter::create(dir, header, codec, 0)?;
    if writer.owner_uid()? != chain.owner_uid() {
        return Err(ImageError::Owner { path, owner: chain.owner_uid() });
    }
    if newest.index.live_known {
        let spaces = newest.index.spaces.iter().map(|(space, index)| (*space, index.live.clone()));
        writer.set_spaces(&spaces.collect::<Vec<_>>())?;
    }
    let maps: Vec<(SpaceId, PageMap)> =
        chain.spaces().into_iter().map(|space| (space, chain.pages(space))).collect();
    let total = maps.iter().map(|(_, map)| map.stored_pages()).sum();
    let written = Cell::new(0);
    let goes_on = |pages: u64| {
        let goes_on = goes_on(written.get(), total);
        written.set(written.get() + pages);
        goes_on
    };
    let Some(copied) = copy_whole_blocks(&mut writer, &chain, &maps, &goes_on)? else { return Ok(None) };
    if !repack(&mut writer, &chain, &maps, &copied, &goes_on)? {
        return Ok(None);
    }
    let (metadata, summary) = (newest.metadata().to_vec(), newest.summary().clone());
    // Ours is a reader's lock, too.
    drop(chain);
    let mut held = None;
    let mut busy = false;
    let finished = writer.finish(&metadata, summary, Naming::Replace, || {
        check_lease()?;
        held = lock_for_pruning(&path).map_err(|error| error.full_text())?;
        busy = held.is_none();
        if busy { Err("it is in use".into()) } else { Ok(()) }
    });
    match finished {
        Err(_) if busy => Ok(None),
        other => other.map(Some),
    }
}

/// Copies the blocks of which every page is alive; gives their numbers in the new file, none if it was given up.
fn copy_whole_blocks(
    writer: &mut GenerationWriter,
    chain: &Chain,
    maps: &[(SpaceId, PageMap)],
    goes_on: &dyn Fn(u64) -> bool,
) -> Result<Option<BTreeMap<Place, u32>>, ImageError> {
    let mut alive: BTreeMap<Place, u64> = BTreeMap::new();
    for run in maps.iter().flat_map(|(_, map)| map.runs()) {
        if let Source::Stored { generation, block, .. } = run.source {
            *alive.entry((generation, block)).or_default() += run.count;
        }
    }
    let mut copied = BTreeMap::new();
    let mut bytes = Vec::new();
    for ((place, offset), pages) in alive {
        let generation = &chain.generations()[place];
        let Some(number) = generation.index.block_at(offset) else { continue };
        let row = generation.index.blocks[number];
        if pages < u64::from(row.pages) {
            continue;
        }
        if !goes_on(pages) {
            return Ok(None);
        }
        generation.read_block(&row, &mut bytes)?;
        block::check(number as u32, row.pages, &bytes).map_err(|what| generation.damaged_block(what))?;
        copied.insert((place, offset), writer.copy_block(row.pages, &mut bytes)?);
    }
    Ok(Some(copied))
}

/// Writes every other page, and the index entries of all; false if it was given up.
fn repack(
    writer: &mut GenerationWriter,
    chain: &Chain,
    maps: &[(SpaceId, PageMap)],
    copied: &BTreeMap<Place, u32>,
    goes_on: &dyn Fn(u64) -> bool,
) -> Result<bool, ImageError> {
    let mut reader = chain.reader();
    let mut pages = Vec::new();
    for (space, map) in maps {
        for run in map.runs() {
            let entry = match run.source {
                Source::Zero => Entry::Zero,
                Source::BackToFile => Entry::BackToFile,
                Source::Stored { generation, block, index } => match copied.get(&(generation, block)) {
                    Some(&block) => Entry::Stored { block, index },
                    None if !goes_on(run.count) => return Ok(false),
                    None => {
                        pages.resize(run.count as usize * PAGE_SIZE, 0);
                        reader.read_run(run, &mut pages)?;
                        writer.put_pages(*space, run.first_page, &pages)?;
                        continue;
                    }
                },
            };
            writer.insert(*space, EntryRun { first: run.first_page, count: run.count, entry });
        }
    }
    Ok(true)
}

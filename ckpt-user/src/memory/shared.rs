//! Shared anonymous memory: an object of its own, saved once through the object, never from page tables.

use crate::image::{Chain, Source, SpaceId};
use crate::rebuild::{RebuildError, Rebuilding};
use crate::record::SharedObject;
use crate::sys::shared;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Makes the object again and fills it; mapping the descriptor MAP_SHARED gives what the program had.
pub fn rebuild(record: &SharedObject, chain: &Chain) -> Result<OwnedFd, RebuildError> {
    let fd = shared::create(record.size).rebuilding(0, "shared memory")?;
    let file = std::fs::File::from(fd);
    let mut reader = chain.reader();
    let mut buffer = vec![0; 256 * 4096];
    for run in chain.pages(SpaceId(record.space)).runs() {
        if !matches!(run.source, Source::Stored { .. }) {
            continue;
        }
        let pages = run.pages();
        let mut at = pages.start;
        while at < pages.end {
            let Some(part) = run.clip(&(at..(at + 256).min(pages.end))) else { break };
            let bytes = &mut buffer[..part.count as usize * 4096];
            reader.read_run(&part, bytes)?;
            file.write_all_at(bytes, at * 4096).rebuilding(0, "shared memory")?;
            at += part.count;
        }
    }
    Ok(file.into())
}

//! Shared memory objects: read through the object (SEEK_DATA), each page compared by hash with what the last
//! committed generation holds; scans of page tables do not show writes through other mappings.

use crate::image::SpaceId;
use crate::memory::vma::{Kind, Vma};
use crate::record::SharedObject;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::xxh3_128;

/// A page that reads as zero.
const ZERO: u128 = 0;

/// One object across checkpoints: the hash of each page as committed, and as being written.
#[derive(Debug, Default)]
struct Known {
    committed: Vec<u128>,
    pending: Option<Vec<u128>>,
}

/// All shared objects of a job, by device and inode.
#[derive(Debug, Default)]
pub struct Objects {
    spaces: HashMap<(u64, u64), SpaceId>,
    known: HashMap<SpaceId, Known>,
}

/// An open object that a stopped process has mapped.
#[derive(Debug)]
pub struct Opened(File);

/// Opens object number `index` through the first of `mappings` that maps it.
pub fn open(pid: Pid, mappings: &[Vma], index: u32) -> Option<io::Result<Opened>> {
    let vma = mappings.iter().find(|v| v.kind() == Kind::SharedObject && v.object == Some(index))?;
    Some(File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end)).map(Opened))
}

impl Objects {
    /// The space of an object, a new one by `next` for an unknown object.
    pub fn space(&mut self, object: &SharedObject, next: impl FnOnce() -> SpaceId) -> SpaceId {
        *self.spaces.entry((object.device, object.inode)).or_insert_with(next)
    }

    /// After a restart the same memory is another object: `object` continues `space`.
    pub fn continued(&mut self, object: (u64, u64), space: SpaceId) {
        self.spaces.insert(object, space);
    }

    /// Hands changed pages to `stored` and changed-to-zero ranges to `zero`; everything the first time.
    pub fn scan(
        &mut self,
        space: SpaceId,
        size: u64,
        object: &Opened,
        mut stored: impl FnMut(u64, &[u8]) -> io::Result<()>,
        mut zero: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        let known = self.known.entry(space).or_default();
        let pages = size.div_ceil(4096);
        let mut hashes = vec![ZERO; pages as usize];
        let mut buffer = vec![0; 1 << 20];
        for data in data_ranges(&object.0, size)? {
            let mut at = data.start / 4096 * 4096;
            while at < data.end {
                let len = ((data.end - at) as usize).min(buffer.len());
                let bytes = &mut buffer[..len.next_multiple_of(4096)];
                bytes.fill(0);
                object.0.read_exact_at(&mut bytes[..len], at)?;
                for (i, page) in bytes.chunks_exact(4096).enumerate() {
                    let number = at / 4096 + i as u64;
                    let hash = if page.iter().all(|&b| b == 0) { ZERO } else { xxh3_128(page).max(1) };
                    let before = known.committed.get(number as usize).copied();
                    if let Some(slot) = hashes.get_mut(number as usize) {
                        *slot = hash;
                    }
                    if hash != ZERO && before != Some(hash) {
                        stored(number, page)?;
                    }
                }
                at += len as u64;
            }
        }
        for (number, &hash) in hashes.iter().enumerate() {
            let before = known.committed.get(number).copied();
            if hash == ZERO && before.is_some_and(|b| b != ZERO) {
                zero(number as u64..number as u64 + 1);
            }
        }
        known.pending = Some(hashes);
        Ok(())
    }

    /// A checkpoint begins: what a failed one scanned was never written.
    pub fn begin(&mut self) {
        self.known.values_mut().for_each(|known| known.pending = None);
    }

    /// The next generation has no parent: nothing of any object is held.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The generation with the scanned content is durable.
    pub fn committed(&mut self) {
        for known in self.known.values_mut() {
            if let Some(pending) = known.pending.take() {
                known.committed = pending;
            }
        }
    }
}

/// Byte ranges of the object that hold data (lseek(2), SEEK_DATA).
fn data_ranges(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    use nix::unistd::{Whence, lseek};
    let mut ranges = Vec::new();
    let mut at = 0i64;
    while (at as u64) < size {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::errno::Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = lseek(file, start, Whence::SeekHole)?;
        ranges.push(start as u64..(end as u64).min(size));
        at = end;
    }
    Ok(ranges)
}

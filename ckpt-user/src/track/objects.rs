//! Shared memory objects: read through the object (SEEK_DATA), or through its mappings where nobody opens it, each page compared by
//! hash with what the last committed generation holds; scans of page tables do not show writes through other mappings.

use crate::daemon::told;
use crate::image::SpaceId;
use crate::memory::runs::PageSet;
use crate::memory::through::Through;
use crate::memory::vma::{MappedFile, Vma};
use crate::object::{Description, Object, reach, table::Descriptor};
use crate::record::{Image, Process, SharedObject};
use crate::task::proc::ProcDir;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC,
    XFS_SUPER_MAGIC, fstatfs,
};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use xxhash_rust::xxh3::xxh3_128;

/// The hash of each page that is not all zero, by page number.
pub type Hashes = HashMap<u64, u128>;

/// The hash of a page; none of one that reads as zero.
pub fn hash(page: &[u8]) -> Option<u128> {
    page.iter().any(|&b| b != 0).then(|| xxh3_128(page))
}

/// One object across checkpoints: its pages as committed, and as being written.
#[derive(Debug, Default)]
struct Known {
    committed: Hashes,
    pending: Option<Hashes>,
}

/// All shared objects of a job, by device and inode.
#[derive(Debug, Default)]
pub struct Objects {
    spaces: HashMap<(u64, u64), SpaceId>,
    known: HashMap<SpaceId, Known>,
}

/// An object that a stopped process has mapped.
#[derive(Debug)]
pub enum Opened<'t> {
    File(File),
    /// It can be read through its mappings alone.
    Through(&'t Through),
}

/// Opens object number `index` through the first process of the stopped tree that has it, mapped or open; `through` is what its
/// mappings show where nobody opens it.
pub fn open<'t>(
    image: &Image,
    index: u32,
    through: Option<&'t Through>,
) -> Option<(Pid, io::Result<Opened<'t>>)> {
    let record = image.objects.get(index as usize)?;
    let is_it = |d: &Description| match &d.object {
        Some(Object::Shared(shared)) => shared.object == index,
        Some(Object::Deleted(file)) => record.deleted && file.identity() == (record.device, record.inode),
        _ => false,
    };
    let is_open = |d: &&Descriptor| image.descriptions.get(d.description as usize).is_some_and(is_it);
    let open = |process: &Process| Some(format!("fd/{}", process.descriptors.iter().find(is_open)?.number));
    let (pid, link) = image.processes.iter().find_map(|process| {
        let mapped = process.mappings.iter().find(|v| v.object == Some(index));
        let mapped = mapped.map(|v| format!("map_files/{:x}-{:x}", v.start, v.end));
        Some((process.reached_by(), mapped.or_else(|| open(process))?))
    })?;
    if let Some(through) = through {
        return Some((pid, Ok(Opened::Through(through))));
    }
    // Shared memory without a name, where a daemon opens it.
    let by_daemon = |error: io::Error| {
        let is_it = |v: &&Vma| v.object == Some(index) && v.shared;
        let mapped =
            image.processes.iter().find_map(|p| Some((p.reached_by(), p.mappings.iter().find(is_it)?)));
        match mapped.filter(|_| error.raw_os_error() == Some(libc::EPERM)) {
            Some((pid, mapping)) => told::object(pid, mapping.start..mapping.end)?.ok_or(error),
            None => Err(error),
        }
    };
    let by_link = || reach::open(&ProcDir::process(pid).path(&link), pid);
    // Where only root may go by the link: one that has it open, too.
    let by_descriptor = |error: io::Error| {
        let found = image.processes.iter().find_map(|p| Some((p.reached_by(), open(p)?)));
        match found.filter(|_| error.raw_os_error() == Some(libc::EPERM)) {
            Some((pid, link)) => reach::open(&ProcDir::process(pid).path(&link), pid),
            None => Err(error),
        }
    };
    // A file with a name has been found by that.
    let by_name = |error: io::Error| {
        let file = record.file.as_ref().filter(|_| error.raw_os_error() == Some(libc::EPERM));
        let file = file.ok_or(error)?;
        let opened = File::open(file.path())?;
        let now = opened.metadata()?;
        let is_it = (now.dev(), now.ino()) == (file.device, file.inode);
        if is_it { Ok(opened) } else { Err(io::Error::other("it is another file by now")) }
    };
    let opened = by_link().or_else(by_descriptor).or_else(by_name).or_else(by_daemon);
    Some((pid, opened.map(Opened::File)))
}

/// Where a file without a name is found: the first process that has it open, mapped or runs it, and a link below /proc/PID.
pub fn link_of(image: &Image, identity: (u64, u64)) -> Option<(Pid, String)> {
    let is_file = |file: &&MappedFile| file.deleted && (file.device, file.inode) == identity;
    let is_open = |d: &&Descriptor| {
        let description = image.descriptions.get(d.description as usize);
        let object = description.and_then(|d| d.object.as_ref());
        matches!(object, Some(Object::Deleted(file)) if file.identity() == identity)
    };
    image.processes.iter().find_map(|process| {
        let open = || Some(format!("fd/{}", process.descriptors.iter().find(is_open)?.number));
        let mapped = || {
            let has = |v: &&Vma| v.file.as_ref().is_some_and(|file| is_file(&file));
            process.mappings.iter().find(has).map(|v| format!("map_files/{:x}-{:x}", v.start, v.end))
        };
        let runs = || process.layout.as_ref()?.executable.as_ref().filter(is_file).map(|_| "exe".to_owned());
        Some((process.reached_by(), open().or_else(mapped).or_else(runs)?))
    })
}

/// Opens a link below /proc/PID of a stopped process.
pub fn open_link(pid: Pid, link: &str) -> io::Result<Opened<'static>> {
    reach::open(&ProcDir::process(pid).path(link), pid).map(Opened::File)
}

impl Opened<'_> {
    /// Hands on those of the `wanted` pages that may hold something: number of the first, and bytes of whole pages.
    fn each(&self, wanted: &PageSet, each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let file = match self {
            Self::File(file) => file,
            Self::Through(through) => return through.each(wanted, each),
        };
        let size = file.metadata()?.len();
        let mut buffer = vec![0; 1 << 20];
        let data: PageSet = data_ranges(file, size)?.into_iter().map(pages_of).collect();
        for range in data.intersection(wanted).runs() {
            let (mut at, end) = (range.start * 4096, range.end * 4096);
            while at < end {
                let bytes = &mut buffer[..((end - at) as usize).min(1 << 20)];
                // The last page of a file may be partly there.
                let there = (size.saturating_sub(at) as usize).min(bytes.len());
                file.read_exact_at(&mut bytes[..there], at)?;
                bytes[there..].fill(0);
                each(at / 4096, bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }
}

impl Objects {
    /// The space of an object, a new one by `next` for an unknown object.
    pub fn space(&mut self, object: &SharedObject, next: impl FnOnce() -> SpaceId) -> SpaceId {
        self.space_of((object.device, object.inode), next)
    }

    /// The same, of what has this device and inode.
    pub fn space_of(&mut self, identity: (u64, u64), next: impl FnOnce() -> SpaceId) -> SpaceId {
        *self.spaces.entry(identity).or_insert_with(next)
    }

    /// After a restart the same memory is another object: `identity` goes on as `space`, whose pages in the committed
    /// chain have these hashes.
    pub fn continued(&mut self, identity: (u64, u64), space: SpaceId, hashes: Hashes) {
        self.spaces.insert(identity, space);
        self.known.insert(space, Known { committed: hashes, pending: None });
    }

    /// The generation being made has no parent: everything is new to it.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Hands changed pages to `stored` and changed-to-zero pages to `zero`, of the pages in `wanted`; everything the
    /// first time.
    pub fn scan(
        &mut self,
        space: SpaceId,
        wanted: &PageSet,
        object: &Opened<'_>,
        mut stored: impl FnMut(u64, &[u8]) -> io::Result<()>,
        zero: impl FnMut(u64),
    ) -> io::Result<()> {
        let known = self.known.entry(space).or_default();
        let mut hashes = Hashes::new();
        object.each(wanted, &mut |first, bytes| {
            for (page, bytes) in (first..).zip(bytes.chunks_exact(4096)) {
                let Some(hash) = hash(bytes) else { continue };
                hashes.insert(page, hash);
                if known.committed.get(&page) != Some(&hash) {
                    stored(page, bytes)?;
                }
            }
            Ok(())
        })?;
        known.committed.keys().filter(|page| !hashes.contains_key(page)).copied().for_each(zero);
        known.pending = Some(hashes);
        Ok(())
    }

    /// A checkpoint begins: what a failed one scanned was never written.
    pub fn begin(&mut self) {
        self.known.values_mut().for_each(|known| known.pending = None);
    }

    /// The generation with the scanned content is durable. An object that it does not hold is a new one should it
    /// come back.
    pub fn committed(&mut self) {
        self.known.retain(|_, known| match known.pending.take() {
            Some(pending) => {
                known.committed = pending;
                true
            }
            None => false,
        });
        let known = &self.known;
        self.spaces.retain(|_, space| known.contains_key(space));
    }
}

fn pages_of(bytes: Range<u64>) -> Range<u64> {
    bytes.start / 4096..bytes.end.div_ceil(4096)
}

/// File systems that know of data which is only in the page cache when they are asked for holes. Others may ask whoever has what
/// was written out (`fuse_lseek` of fs/fuse/file.c), and what they call a hole is then data; ZFS has called data holes
/// (<https://github.com/openzfs/zfs/issues/15526>).
const KNOW_THEIR_HOLES: [FsType; 6] = [
    TMPFS_MAGIC,
    EXT4_SUPER_MAGIC,
    XFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
    // It asks the one that has the file.
    OVERLAYFS_SUPER_MAGIC,
];

/// Byte ranges of the object that hold data (lseek(2), SEEK_DATA); all of it where that is not to be relied on.
fn data_ranges(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    use nix::unistd::{Whence, lseek};
    if !KNOW_THEIR_HOLES.contains(&fstatfs(file)?.filesystem_type()) {
        return Ok(std::iter::once(0..size).filter(|all| !all.is_empty()).collect());
    }
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

#[cfg(test)]
mod tests {
    // One range is what is meant.
    #![allow(clippy::single_range_in_vec_init)]

    use super::*;
    use std::os::fd::AsRawFd;

    /// procfs knows nothing of holes, and FUSE what its server knows.
    #[test]
    fn holes_are_believed_of_those_that_know_them() {
        let file = crate::sys::shared::create(3 * 4096, 0).map(File::from).unwrap();
        file.write_all_at(b"here", 4096).unwrap();
        assert_eq!(data_ranges(&file, 3 * 4096).unwrap(), vec![4096..8192]);
        let elsewhere = File::open(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        assert_eq!(data_ranges(&elsewhere, 4096).unwrap(), vec![0..4096]);
        assert!(data_ranges(&elsewhere, 0).unwrap().is_empty());
    }
}

//! What a file that the program both reads and writes held at the checkpoint: a digest of its two ends.
//!
//! A restart cuts files back, but rewrites none. Bytes that were overwritten since show in a digest where they are
//! likely to change with any change (headers, counters, the last record), and in the time where the size is the same.
//! A program that only writes a file cannot read another file than it remembers: it writes the same bytes once more.

use super::file::{self, FileRecord};
use super::known_ends::{self, Known};
use super::{Description, Object, Seen};
use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, SYSFS_MAGIC, TRACEFS_MAGIC, fstatfs,
};
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::Xxh3;

/// Of the bytes that a file had at the checkpoint.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Ends {
    /// How many bytes of each end are in it, a multiple of 4096; the last ones begin at such a multiple.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// XXH3 of 128 bits.
    #[prost(fixed64, tag = "2")]
    pub high: u64,
    #[prost(fixed64, tag = "3")]
    pub low: u64,
}

/// Of each end at most, and at least. A write-ahead log of sqlite, which has 1000 pages, is covered.
const MOST: u64 = 2 << 20;
const LEAST: u64 = 4 << 10;
/// Of all files: they are read while the program stands still, at some 3 GB/s.
const TOGETHER: u64 = 16 << 20;
/// Read at a time.
const BATCH: usize = 256 << 10;
/// What O_DIRECT wants of buffers and positions.
const ALIGNMENT: usize = 4096;

/// Where reading acts, or tells something else each time.
const NO_CONTENT: [FsType; 5] =
    [SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC];

/// Whether files of that kind of file system are no more than questions to the kernel.
pub fn has_no_content(system: FsType) -> bool {
    NO_CONTENT.contains(&system)
}

impl Ends {
    /// # Errors
    /// It cannot be read, or is shorter than `size`.
    pub(super) fn of(file: BorrowedFd<'_>, size: u64, bytes: u64) -> io::Result<Self> {
        let file = File::from(file.try_clone_to_owned()?);
        let mut digest = Xxh3::new();
        let (head, tail) = parts(size, bytes);
        let mut room = vec![0; BATCH + ALIGNMENT];
        let start = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let room = &mut room[start..start + BATCH];
        for range in [0..head, tail..size] {
            let mut at = range.start;
            while at < range.end {
                let there = file.read_at(room, at)?.min((range.end - at) as usize);
                if there == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                digest.update(&room[..there]);
                at += there as u64;
            }
        }
        let digest = digest.digest128();
        Ok(Self { bytes, high: (digest >> 64) as u64, low: digest as u64 })
    }

    /// How many bytes of a file of `size` are in it.
    pub(super) fn length(&self, size: u64) -> u64 {
        let (head, tail) = parts(size, self.bytes);
        head + (size - tail)
    }

    fn covers(&self, size: u64) -> bool {
        size <= 2 * self.bytes
    }

    /// Whether it is one that a checkpoint can have made.
    pub fn is_sound(&self) -> bool {
        self.bytes <= MOST && self.bytes.is_multiple_of(ALIGNMENT as u64)
    }
}

/// Where the first end stops, and the last one begins.
fn parts(size: u64, bytes: u64) -> (u64, u64) {
    let head = bytes.min(size);
    (head, (size.saturating_sub(bytes) / ALIGNMENT as u64 * ALIGNMENT as u64).max(head))
}

fn reads(description: &Description) -> bool {
    description.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32
}

fn writes(description: &Description) -> bool {
    description.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

fn file_of(description: &Description) -> Option<&FileRecord> {
    match &description.object {
        Some(Object::File(file)) if !file.directory && description.flags & libc::O_PATH as u32 == 0 => {
            Some(file)
        }
        _ => None,
    }
}

/// Notes the ends of every file that the program both reads and writes; how many bytes were read for that. What is `known` of a
/// file that has not changed is not read. What cannot be read now could not be by the program either: that has none.
pub fn capture(descriptions: &mut [Description], opened: &[(OwnedFd, Seen)], known: &mut Known) -> u64 {
    let now = known_ends::now();
    let mut written: HashMap<(u64, u64), (Vec<usize>, Option<usize>)> = HashMap::new();
    for (index, description) in descriptions.iter().enumerate() {
        let Some(file) = file_of(description) else { continue };
        let (writers, reader) = written.entry((file.device, file.inode)).or_default();
        if writes(description) {
            writers.push(index);
        }
        if reads(description) {
            reader.get_or_insert(index);
        }
    }
    let both = |(writers, reader): (Vec<usize>, Option<usize>)| Some((reader?, writers));
    let files: Vec<(usize, Vec<usize>)> =
        written.into_values().filter_map(both).filter(|(_, writers)| !writers.is_empty()).collect();
    let bytes = bytes_of_each(files.len() as u64);
    let mut old = std::mem::take(known);
    let mut count = 0;
    for (reader, writers) in files {
        let (fd, seen) = &opened[reader];
        let system = fstatfs(fd).ok().map(|fs| fs.filesystem_type());
        if system.is_some_and(has_no_content) {
            continue;
        }
        let metadata = fd.try_clone().and_then(|fd| File::from(fd).metadata()).ok();
        // Of a size. The records say the same, unless somebody outside of the program changes it right now.
        let mut ends = None;
        if let (Some(found), Some(system), true) = (metadata, system, is_free(&descriptions[reader], seen)) {
            let met = known.meet(&mut old, (&found, system), seen, bytes, now);
            ends = met.map(|met| (found.len(), Some(met)));
        }
        for index in writers {
            let Some(Object::File(file)) = &mut descriptions[index].object else { continue };
            let (_, of_it) = ends.take_if(|(size, _)| *size == file.size).unwrap_or_else(|| {
                let read = Ends::of(fd.as_fd(), file.size, bytes).ok();
                count += read.as_ref().map_or(0, |read| read.length(file.size));
                (file.size, read)
            });
            file.ends.clone_from(&of_it);
            ends = Some((file.size, of_it));
        }
    }
    count
}

/// Whether a duplicate of it, beside the running program, holds nothing back.
fn is_free(description: &Description, seen: &Seen) -> bool {
    description.locks.is_empty() && description.lease.is_none() && seen.carried.is_none()
}

/// What is read of each end where there are so many files.
fn bytes_of_each(files: u64) -> u64 {
    // In steps, so that one file more or less seldom makes all of them be read anew.
    let bytes = (TOGETHER / 2 / files.max(1)).clamp(LEAST, MOST);
    1 << bytes.ilog2()
}

/// Whether the program writes at the file's end only: it has it open for that, or stood there.
pub fn is_appended_to(descriptions: &[Description], file: &FileRecord) -> bool {
    writers(descriptions, file).all(|d| appends(d) || d.position >= file.size)
}

/// Whether all that the program writes there goes to the file's end, wherever that is by then.
pub fn is_only_appended_to(descriptions: &[Description], file: &FileRecord) -> bool {
    writers(descriptions, file).all(appends)
}

fn appends(description: &Description) -> bool {
    description.flags & libc::O_APPEND as u32 != 0
}

fn writers<'d>(descriptions: &'d [Description], file: &FileRecord) -> impl Iterator<Item = &'d Description> {
    let file = (file.device, file.inode);
    let same = move |d: &&Description| file_of(d).is_some_and(|other| (other.device, other.inode) == file);
    descriptions.iter().filter(same).filter(|d| writes(d))
}

/// Whether bytes that the file held at the checkpoint are others now; `appended`: the program writes at its end only.
/// A file that was written to, has grown and looks the same at both ends has been appended to, if that is what is done
/// to it.
///
/// # Errors
/// It cannot be read.
pub fn is_overwritten(record: &FileRecord, now: &Metadata, appended: bool) -> io::Result<bool> {
    let Some(ends) = &record.ends else { return Ok(false) };
    let file = file::open(record.path(), libc::O_RDONLY as u32)?;
    if Ends::of(file.as_fd(), record.size, ends.bytes)? != *ends {
        return Ok(true);
    }
    if ends.covers(record.size) || record.is_as_old(now) {
        return Ok(false);
    }
    Ok(now.len() == record.size || !appended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A file of `size` bytes, and its record.
    fn noted(path: &Path, size: usize) -> FileRecord {
        std::fs::write(path, vec![7; size]).unwrap();
        let metadata = path.metadata().unwrap();
        let ends = Ends::of(File::open(path).unwrap().as_fd(), size as u64, LEAST).unwrap();
        assert!(ends.is_sound());
        FileRecord { ends: Some(ends), ..FileRecord::of(path, &metadata) }
    }

    /// Writes at `at`, and makes the file look younger, however coarse its clock.
    fn write(path: &Path, at: u64, bytes: &[u8]) -> Metadata {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, at).unwrap();
        let later = path.metadata().unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
        file.set_modified(later).unwrap();
        path.metadata().unwrap()
    }

    #[test]
    fn what_was_overwritten_is_told_from_what_was_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let large = 3 * LEAST as usize;
        // Size, where one byte is written, whether the program appends, and what that is.
        let cases = [
            (10, 9, true, true),
            (10, 10, false, false),
            (large, 0, true, true),
            (large, large as u64 - 1, true, true),
            (large, large as u64 / 2, true, true),
            (large, large as u64, true, false),
            (large, large as u64, false, true),
            (0, 0, false, false),
            (5000, 5000, false, false),
        ];
        for (size, at, appended, overwritten) in cases {
            let record = noted(&path, size);
            let now = path.metadata().unwrap();
            assert!(!is_overwritten(&record, &now, appended).unwrap(), "{size} bytes, untouched");
            let now = write(&path, at, b"x");
            let found = is_overwritten(&record, &now, appended).unwrap();
            assert_eq!(found, overwritten, "{size} bytes, one at {at}, appended: {appended}");
        }
    }

    #[test]
    fn the_middle_of_a_file_that_also_grew_shows_where_it_is_not_only_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let record = noted(&path, 3 * LEAST as usize);
        write(&path, 3 * LEAST / 2, b"x");
        let now = write(&path, 3 * LEAST, b"x");
        assert!(is_overwritten(&record, &now, false).unwrap());
        assert!(!is_overwritten(&record, &now, true).unwrap(), "docs/limitations.md");
    }

    #[test]
    fn many_files_share_what_is_read_while_the_program_stands_still() {
        assert_eq!(
            [0, 1, 4, 16, 100, 1_000_000].map(bytes_of_each),
            [MOST, MOST, MOST, 512 << 10, 64 << 10, LEAST]
        );
    }
}

//! inotify(7): what an instance watches, under the same numbers. Files are found by the handles that fdinfo shows, and
//! watched again as the last act before the program runs, so that nothing that a restart does is an event.
//!
//! Events that nobody has read cannot be looked at without taking them: then the checkpoint is refused.

use super::apart::apart;
use super::file::FileRecord;
use super::reach::leads_to;
use super::{Object, Seen};
use crate::sys::{inotify, socket};
use crate::task::mounts::{self, Mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct InotifyRecord {
    /// Ascending by number.
    #[prost(message, repeated, tag = "1")]
    pub watches: Vec<Watch>,
}

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Watch {
    #[prost(int32, tag = "1")]
    pub number: i32,
    /// IN_*.
    #[prost(uint32, tag = "2")]
    pub mask: u32,
    #[prost(message, optional, tag = "3")]
    pub file: Option<FileRecord>,
}

/// The kernel counts watches from 1 on; each one that is gone takes two calls to count past.
const MOST: i32 = 1 << 20;

/// # Errors
/// The reason why it cannot be saved: events that wait, a file that is not found.
pub fn capture(seen: &Seen, fd: &OwnedFd) -> Result<Object, String> {
    let info = seen.fresh_info().map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    for line in info.lines().filter(|l| l.starts_with("inotify ")) {
        let shown =
            Shown::parse(line).ok_or_else(|| format!("this kernel does not show what it watches: {line}"))?;
        if shown.number > MOST {
            return Err(format!("it has had too many watches: {}", shown.number));
        }
        all.push(shown);
    }
    let found = find(&all, seen.pid).map_err(|e| e.to_string())?;
    let mut watches = Vec::with_capacity(all.len());
    for (shown, found) in all.iter().zip(found) {
        let (path, metadata) = found.ok_or_else(|| {
            format!(
                "what its watch {} is on (inode {}) has no path that can be found",
                shown.number, shown.inode
            )
        })?;
        let file = FileRecord::of(&path, &metadata);
        watches.push(Watch { number: shown.number, mask: shown.mask, file: Some(file) });
    }
    watches.sort_unstable_by_key(|w| w.number);
    // Last: nothing that was looked at above is an event of it unseen.
    if socket::waiting(fd).map_err(|e| e.to_string())? > 0 {
        return Err("events wait in it that the program has not read; these cannot be saved".to_owned());
    }
    Ok(Object::Inotify(InotifyRecord { watches }))
}

/// One watch in fdinfo, all numbers in hexadecimal (fs/notify/fdinfo.c): `inotify wd:2 ino:9b0001 sdev:fe00000 mask:2
/// ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:01009b00f4c97ba0`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    number: i32,
    inode: u64,
    device: (u32, u32),
    mask: u32,
    kind: i32,
    handle: Vec<u8>,
}

impl Shown {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix(':'))
                .filter(|v| v.is_ascii())
        };
        let number = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let device = u32::try_from(number("sdev")?).ok()?;
        let digits = field("f_handle")?.as_bytes().chunks(2);
        let handle = digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        Some(Self {
            number: i32::try_from(number("wd")?).ok()?,
            inode: number("ino")?,
            device: (device >> 20, device & 0xf_ffff),
            mask: number("mask")? as u32,
            kind: number("fhandle-type")? as i32,
            handle: handle.collect::<Option<_>>()?,
        })
    }

    /// A path that leads to it, which `pid` watches. The thread has a working directory of its own, and loses it.
    fn find(&self, mounts: &[Mount], pid: Pid) -> Option<Found> {
        mounts.iter().filter(|mount| mount.device == self.device).find_map(|mount| {
            let at = std::fs::symlink_metadata(&mount.path).ok()?;
            if !at.is_dir() {
                return (at.ino() == self.inode).then(|| (mount.path.clone(), at));
            }
            // A name alone (O_PATH) is not enough for the kernel, and to open it is an event for those who watch it.
            nix::unistd::chdir(&mount.path).ok()?;
            let found = inotify::open_by_handle_here(self.kind, &self.handle).ok()?;
            let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
            let metadata = File::from(found).metadata().ok()?;
            let is_it = leads_to(&path, &metadata, pid).unwrap_or(false);
            (metadata.ino() == self.inode && is_it).then_some((path, metadata))
        })
    }
}

type Found = (PathBuf, std::fs::Metadata);

/// Where each of them is that `pid` watches.
fn find(all: &[Shown], pid: Pid) -> io::Result<Vec<Option<Found>>> {
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let look = || {
        unshare(CloneFlags::CLONE_FS)?;
        let mounts = read_mounts();
        Ok(all.iter().map(|shown| shown.find(&mounts, pid)).collect())
    };
    apart(look, "looking for what is watched failed")
}

/// Whole file systems before parts of them.
fn read_mounts() -> Vec<Mount> {
    let mut all = mounts::ours().unwrap_or_default();
    all.sort_by_key(|mount| !mount.is_whole);
    all
}

fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// An instance that watches nothing yet; what it is to watch is there, and is watched by another one to see that it can be.
///
/// # Errors
/// NotFound when a file is gone; InvalidData when another one has its name.
pub fn rebuild(record: &InotifyRecord, flags: u32) -> io::Result<OwnedFd> {
    let trial = inotify::create(0)?;
    for watch in &record.watches {
        add(&trial, watch)?;
    }
    inotify::create(flags as i32 & libc::IN_NONBLOCK)
}

fn add(instance: &OwnedFd, watch: &Watch) -> io::Result<i32> {
    let file = watch.file.as_ref().ok_or(io::ErrorKind::InvalidData)?;
    let named = |e: io::Error| {
        io::Error::new(e.kind(), format!("{}: the program watches it (inotify): {e}", file.path().display()))
    };
    let opened = open_path(file.path()).map_err(named)?;
    let metadata = opened.metadata().map_err(named)?;
    if !file.is_still_there(&metadata) {
        return Err(named(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is another file than at the checkpoint",
        )));
    }
    inotify::add(instance, Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd())), watch.mask)
        .map_err(named)
}

/// Watches everything under its number, and takes out the events of doing so.
pub fn watch(record: &InotifyRecord, instance: &OwnedFd) -> io::Result<()> {
    let mut last = 0;
    for watch in &record.watches {
        loop {
            let got = add(instance, watch)?;
            if got <= last || got > watch.number || got > MOST {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the watches of an inotify have no order",
                ));
            }
            last = got;
            if got == watch.number {
                break;
            }
            inotify::remove(instance, got)?;
        }
    }
    let mut events = vec![0; 1 << 16];
    while socket::waiting(instance)? > 0 {
        nix::unistd::read(instance, &mut events)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(dir: &Path, numbers: &[i32]) -> InotifyRecord {
        let file = FileRecord::of(dir, &dir.metadata().unwrap());
        let sub = dir.join("sub");
        std::fs::create_dir_all(&sub).unwrap();
        let other = FileRecord::of(&sub, &sub.metadata().unwrap());
        let files = [file, other];
        let watch = |(&number, file): (&i32, &FileRecord)| Watch {
            number,
            mask: libc::IN_CREATE,
            file: Some(file.clone()),
        };
        InotifyRecord { watches: numbers.iter().zip(&files).map(watch).collect() }
    }

    #[test]
    fn watches_have_their_numbers_and_no_events() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path(), &[3, 40]);
        let instance = rebuild(&record, 0).unwrap();
        watch(&record, &instance).unwrap();
        assert_eq!(socket::waiting(&instance).unwrap(), 0);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", instance.as_raw_fd())).unwrap();
        let mut found: Vec<Shown> =
            info.lines().filter(|l| l.starts_with("inotify")).filter_map(Shown::parse).collect();
        found.sort_by_key(|s| s.number);
        assert_eq!(found.iter().map(|s| s.number).collect::<Vec<_>>(), [3, 40]);
        let (path, _) = find(&found, Pid::this()).unwrap().pop().flatten().unwrap();
        assert_eq!(path, dir.path().canonicalize().unwrap().join("sub"));
    }

    #[test]
    fn numbers_out_of_order_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for numbers in [[4, 4], [4, 2], [0, 1]] {
            let record = record(dir.path(), &numbers);
            assert!(watch(&record, &rebuild(&record, 0).unwrap()).is_err());
        }
        let gone = record(dir.path(), &[1, 2]);
        std::fs::remove_dir(dir.path().join("sub")).unwrap();
        assert!(rebuild(&gone, 0).is_err());
    }
}

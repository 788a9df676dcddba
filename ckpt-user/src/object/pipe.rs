//! Pipes and FIFOs with what they hold. Contents are read by tee(2), which takes nothing out.
//!
//! Not kept: that the end of what waits is one packet behind plain bytes, where nobody writes packets any more.

use super::reach::leads_to;
use super::{Object, Seen, path_of};
use crate::sys::tee;
use crate::task::proc::{ProcDir, reached_by};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// One end of a pipe, or both (O_RDWR); records with the same `pipe` belong together.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PipeRecord {
    /// The pipe's inode number: an identity within one image.
    #[prost(uint64, tag = "1")]
    pub pipe: u64,
    /// F_GETPIPE_SZ, bytes.
    #[prost(uint32, tag = "2")]
    pub capacity: u32,
    /// What waits to be read; the same in each end's record.
    #[prost(bytes = "vec", tag = "3")]
    pub content: Vec<u8>,
    /// Its name in the file system; empty for a pipe(2).
    #[prost(bytes = "vec", tag = "4")]
    pub path: Vec<u8>,
    /// Where `content` was written in packet mode (O_DIRECT): the length of each packet, bytes.
    #[prost(uint32, repeated, tag = "5")]
    pub packets: Vec<u32>,
    /// Of a FIFO: nobody has opened it for writing since those who read have opened it.
    #[prost(bool, tag = "6")]
    pub unheard: bool,
}

fn access(flags: u32) -> u32 {
    flags & libc::O_ACCMODE as u32
}

fn reads(flags: u32) -> bool {
    access(flags) != libc::O_WRONLY as u32
}

fn writes(flags: u32) -> bool {
    access(flags) != libc::O_RDONLY as u32
}

/// # Errors
/// The reason why a restart could not make it again.
pub fn capture(
    seen: &Seen,
    fd: &OwnedFd,
    metadata: &Metadata,
    all: &[(OwnedFd, Seen)],
) -> Result<Object, String> {
    let anonymous = seen.target.as_os_str().as_bytes().starts_with(b"pipe:[");
    if !anonymous && !leads_to(&seen.target, metadata, seen.pid)? {
        return Err("the FIFO has been removed or renamed since it was opened".to_owned());
    }
    // Compared as bytes, and once: a program may have thousands of pipes, and stands still.
    let name = seen.target.as_os_str();
    let same: Vec<_> = all.iter().filter(|(_, other)| other.target.as_os_str() == name).collect();
    let reader = same.iter().find(|(_, other)| reads(other.flags)).map(|(fd, _)| fd);
    let has_writer = same.iter().any(|(_, other)| writes(other.flags));
    // With one end only, the other must be closed everywhere, else somebody outside holds it.
    let mut unheard = false;
    if (reader.is_none() || !has_writer) && !hung_up(fd) {
        // Of a FIFO, it may never have been there.
        unheard =
            !anonymous && reader.is_some() && !has_writer && writer_of(&seen.target, metadata).is_none();
        if !unheard {
            return Err("its other end is held by a process outside the program".to_owned());
        }
    }
    let capacity = fcntl(fd, FcntlArg::F_GETPIPE_SZ).map_err(|e| e.to_string())?;
    let (content, packets) = match reader {
        Some(end) => {
            let packets =
                same.iter().any(|(_, other)| writes(other.flags) && other.flags & libc::O_DIRECT as u32 != 0);
            peek(end, capacity as usize, packets)?
        }
        None => Default::default(),
    };
    let path = if anonymous { Vec::new() } else { seen.target.as_os_str().as_bytes().to_vec() };
    let capacity = capacity as u32;
    Ok(Object::Pipe(PipeRecord { pipe: metadata.ino(), capacity, content, path, packets, unheard }))
}

/// What waits to be read, and the lengths of packets where it is packets; `packets`: what is written now is.
fn peek(end: &OwnedFd, capacity: usize, packets: bool) -> Result<(Vec<u8>, Vec<u32>), String> {
    let copy = || tee::copy(end.as_fd(), capacity).map_err(|e| e.to_string());
    let Some(all) = copy()? else { return Ok(Default::default()) };
    let parts = all.read_apart().map_err(|e| e.to_string())?;
    let Some(probe) = copy()? else { return Ok(Default::default()) };
    let lengths: Vec<u32> = parts.iter().map(|part| part.len() as u32).collect();
    // Bytes are read as far as they go; a packet is read alone, and what is not read of it is lost.
    let lost = probe.lost_by_byte(&lengths, packets).map_err(|e| e.to_string())?;
    match lost {
        Some(true) => Ok((parts.concat(), lengths)),
        Some(false) if parts.len() <= 1 && !packets => Ok((parts.concat(), Vec::new())),
        _ => Err("it holds packets (O_DIRECT) beside other bytes, which cannot be saved yet".to_owned()),
    }
}

/// Who has the FIFO at `path` open to write to it, as far as that can be known. Nobody's other files are asked for: who serves
/// them may not answer.
fn writer_of(path: &Path, metadata: &Metadata) -> Option<Pid> {
    let is_it = |other: Metadata| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino());
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    pids.find(|&pid| {
        let via = reached_by(pid);
        let dir = ProcDir::process(via);
        let numbers = dir.numbers("fd").unwrap_or_default();
        let here = |number: &i32| {
            let link = format!("fd/{number}");
            let is_alike = dir.link(&link).is_ok_and(|other| other.file_name() == path.file_name());
            is_alike && std::fs::metadata(dir.path(link)).is_ok_and(is_it)
        };
        numbers.iter().filter(|number| here(number)).any(|&number| {
            let seen = Seen::look(via, number);
            seen.is_ok_and(|(seen, _)| !seen.is_path_only() && writes(seen.flags))
        })
    })
}

/// Whether nobody at all holds the other end.
fn hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|_| {
        fds[0].revents().is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    })
}

/// The pipes of one restart, by identity: of each an end that reads and one that writes, until all is made.
#[derive(Default)]
pub struct Pipes(HashMap<u64, (OwnedFd, OwnedFd)>);

impl Pipes {
    /// A description of its own with `flags`; the first call for a pipe makes and fills it.
    pub fn rebuild(&mut self, record: &PipeRecord, flags: u32) -> io::Result<OwnedFd> {
        if record.unheard {
            return open_unheard(path_of(&record.path), flags);
        }
        let (read, write) = match self.0.entry(record.pipe) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(new) => new.insert(fill(record)?),
        };
        let once = libc::O_ACCMODE | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
        let status = (flags as i32 & !once) as u32;
        if record.path.is_empty() && flags & LARGE_FILE == 0 && access(flags) != libc::O_RDWR as u32 {
            // The very end that pipe(2) gave: one of each kind, whose flags belong to all who share it.
            let end = if writes(flags) { write } else { read };
            fcntl(&*end, FcntlArg::F_SETFL(OFlag::from_bits_truncate(status as i32)))?;
            return end.try_clone();
        }
        // Opening by this magic link makes a new description of the same pipe, with any access mode.
        let packets = flags as i32 & libc::O_DIRECT;
        let end = OpenOptions::new()
            .read(reads(flags))
            .write(writes(flags))
            .custom_flags(status as i32 & !libc::O_DIRECT)
            .open(format!("/proc/self/fd/{}", read.as_raw_fd()))?;
        if packets != 0 {
            fcntl(&end, FcntlArg::F_SETFL(OFlag::from_bits_truncate(status as i32)))?;
        }
        Ok(end.into())
    }
}

/// What the kernel adds to the flags of whatever open(2) opens on 64-bit machines, and pipe(2) does not.
const LARGE_FILE: u32 = 0o100_000;

fn fill(record: &PipeRecord) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = if record.path.is_empty() {
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?
    } else {
        open_fifo(path_of(&record.path))?
    };
    let capacity = i32::try_from(record.capacity).unwrap_or(i32::MAX);
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(capacity))?;
    let mut into = File::from(write.try_clone()?);
    if record.packets.is_empty() {
        into.write_all(&record.content)?;
        return Ok((read, write));
    }
    // Of a packet pipe each write is a packet. The mode of the end itself is set when it is handed out.
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_DIRECT | OFlag::O_NONBLOCK))?;
    let mut left = record.content.as_slice();
    for &length in &record.packets {
        let (packet, rest) = left.split_at_checked(length as usize).ok_or(io::ErrorKind::InvalidData)?;
        into.write_all(packet)?;
        left = rest;
    }
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// A reader that has had no writer is told of none that has gone: none is to be there while it is opened.
fn open_unheard(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let named = |why: &str| io::Error::other(format!("{}: {why}", path.display()));
    let end = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let end = end.map_err(|e| named(&e.to_string()))?;
    if !end.metadata()?.file_type().is_fifo() {
        return Err(named("it is no longer a FIFO"));
    }
    // Nothing is taken out: it is somebody else's.
    if !tee::is_over(end.as_fd())? {
        return Err(named("another process uses this FIFO"));
    }
    fcntl(&end, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags as i32 & !libc::O_ACCMODE)))?;
    Ok(end.into())
}

fn open_fifo(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let named = |why: &str| io::Error::other(format!("{}: {why}", path.display()));
    let both = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let both = both.map_err(|e| named(&e.to_string()))?;
    if !both.metadata()?.file_type().is_fifo() {
        return Err(named("it is no longer a FIFO"));
    }
    if tee::waiting(both.as_fd())? > 0 {
        return Err(named("another process uses this FIFO: there is data in it"));
    }
    let second = both.try_clone()?;
    Ok((both.into(), second.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_somebody_else_has_in_a_fifo_is_left_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        open_unheard(&path, 0).unwrap();
        open_fifo(&path).unwrap();
        let mut other = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(open_unheard(&path, 0).unwrap_err().to_string().contains("another process uses this FIFO"));
        other.write_all(b"theirs").unwrap();
        assert!(open_unheard(&path, 0).unwrap_err().to_string().contains("another process uses this FIFO"));
        assert!(open_fifo(&path).unwrap_err().to_string().contains("there is data in it"));
        let mut bytes = [0; 9];
        assert_eq!(other.read(&mut bytes).unwrap(), 6);
        assert_eq!(&bytes[..6], b"theirs");
    }
}

//! Pipes with what they hold. Contents are read by tee(2), which takes nothing out.

use crate::sys::tee;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

/// One end of a pipe; ends with the same `pipe` belong together.
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
}

/// Reads the record of a pipe through any descriptor of its *read* end.
pub fn capture(pipe: u64, read_end: Option<&OwnedFd>, any_end: &OwnedFd) -> io::Result<PipeRecord> {
    let capacity = nix::fcntl::fcntl(any_end, nix::fcntl::FcntlArg::F_GETPIPE_SZ).map_err(io::Error::from)?;
    let content = match read_end {
        Some(end) => tee::peek(end.as_fd(), capacity as usize)?,
        None => Vec::new(),
    };
    Ok(PipeRecord { pipe, capacity: capacity as u32, content })
}

/// The pipes of one restart, by identity.
#[derive(Default)]
pub struct Pipes(HashMap<u64, (OwnedFd, OwnedFd)>);

impl Pipes {
    /// The end that `flags` ask for; the first call for a pipe makes and fills it.
    pub fn rebuild(&mut self, record: &PipeRecord, flags: u32) -> io::Result<OwnedFd> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        if let Entry::Vacant(new) = self.0.entry(record.pipe) {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
            let capacity = i32::try_from(record.capacity).unwrap_or(i32::MAX);
            fcntl(&write, FcntlArg::F_SETPIPE_SZ(capacity))?;
            std::fs::File::from(write.try_clone()?).write_all(&record.content)?;
            new.insert((read, write));
        }
        let Some((read, write)) = self.0.get(&record.pipe) else {
            return Err(io::Error::other("the pipe was not made"));
        };
        let end = if flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32 { write } else { read };
        // Flags belong to the end's one description: every holder shares it, as it did.
        let status = OFlag::from_bits_truncate((flags & !(libc::O_ACCMODE as u32)) as i32);
        fcntl(end, FcntlArg::F_SETFL(status))?;
        end.try_clone()
    }
}

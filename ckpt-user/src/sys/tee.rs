//! tee(2): a copy of what a pipe holds, taking nothing out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A pipe of ours that holds the same, packets as packets.
#[derive(Debug)]
pub struct Copy {
    read: File,
    capacity: usize,
}

/// Whether the pipe is empty and nobody has it open to write to it, as far as `read_end` is told.
pub fn is_over(read_end: BorrowedFd<'_>) -> io::Result<bool> {
    let (_read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    // SAFETY: as below.
    let got = unsafe { libc::tee(read_end.as_raw_fd(), write.as_raw_fd(), 1, libc::SPLICE_F_NONBLOCK) };
    match super::check(got as i64) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        got => got.map(|bytes| bytes == 0),
    }
}

/// A copy of what waits in the pipe behind `read_end`, at most `capacity` bytes; none when it is empty.
pub fn copy(read_end: BorrowedFd<'_>, capacity: usize) -> io::Result<Option<Copy>> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    let size = i32::try_from(capacity).unwrap_or(i32::MAX);
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETPIPE_SZ(size))?;
    // SAFETY: two descriptors that live across the call and integers; tee(2) touches no memory of ours.
    let got =
        unsafe { libc::tee(read_end.as_raw_fd(), write.as_raw_fd(), capacity, libc::SPLICE_F_NONBLOCK) };
    match super::check(got as i64) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(Copy { read: read.into(), capacity })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Copy {
    /// Reads everything, by calls that take as much as there is: all bytes together, each packet alone.
    pub fn read_apart(mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut parts = Vec::new();
        let mut buffer = vec![0; self.capacity];
        loop {
            match self.read.read(&mut buffer)? {
                0 => return Ok(parts),
                n => parts.push(buffer[..n].to_vec()),
            }
        }
    }

    /// Reads one byte at the beginning of each part: whether that takes the whole part each time (they are packets) or
    /// one byte (they are not), and `None` where it is now this, now that. One part of one byte is `otherwise`.
    pub fn lost_by_byte(mut self, parts: &[u32], otherwise: bool) -> io::Result<Option<bool>> {
        let mut packets = None;
        for &part in parts {
            let before = self.left()?;
            // A part of one byte is told from others by more than it being read.
            let mut bytes = [0; 2];
            let wanted = if part == 1 { 2 } else { 1 };
            let got = self.read.read(&mut bytes[..wanted])?;
            let taken = before - self.left()?;
            let is_packet = if part == 1 { got == 1 && before > 1 } else { taken == part as usize };
            if part == 1 && before == 1 {
                continue;
            }
            if packets.is_some_and(|known| known != is_packet) {
                return Ok(None);
            }
            packets = Some(is_packet);
            if !is_packet {
                break;
            }
        }
        Ok(packets.or(Some(otherwise)))
    }

    fn left(&self) -> io::Result<usize> {
        waiting(self.read.as_fd())
    }
}

/// Bytes that wait in a pipe.
pub fn waiting(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `bytes`, which lives across the call.
    super::check(i64::from(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }))?;
    Ok(bytes as usize)
}

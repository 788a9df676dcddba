//! Shared anonymous memory as a descriptor.

use super::mem;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A shared anonymous object of `size` bytes, as mmap(2) with MAP_SHARED | MAP_ANONYMOUS makes it (a memfd
/// would carry another name in /proc/PID/maps), reached through /proc/self/map_files. `flags`: MAP_HUGETLB with a page size, for
/// which no page is set aside; MAP_NORESERVE, without which all of it counts as memory that is committed.
pub fn create(size: u64, flags: i32) -> io::Result<OwnedFd> {
    let flags = if flags & libc::MAP_HUGETLB == 0 { flags } else { flags | libc::MAP_NORESERVE };
    // Whoever is closed to others (PR_SET_DUMPABLE) may not follow the link below, and promises no memory before it is told so.
    drop(mem::Forced::open(Pid::this())?);
    let mapped = Mapped::new(size as usize, libc::MAP_SHARED | libc::MAP_ANONYMOUS | flags, -1)?;
    let start = mapped.at as u64;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + size);
    // The object lives on in the file.
    File::options().read(true).write(true).open(path).map(Into::into)
}

/// An object mapped here, to be written where write(2) does not reach it. Nothing of it is ever borrowed.
#[derive(Debug)]
pub struct Mapped {
    at: usize,
    len: usize,
    is_writable: bool,
}

impl Mapped {
    /// The first page of a file, which is not to be written.
    pub fn beginning(file: &File) -> io::Result<Self> {
        const PAGE: usize = 4096;
        Self::map(PAGE, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd())
    }

    /// Where it is.
    pub const fn address(&self) -> u64 {
        self.at as u64
    }

    /// The whole of a file.
    pub fn of(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len() as usize;
        Self::new(len, libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd())
    }

    fn new(len: usize, flags: i32, fd: i32) -> io::Result<Self> {
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, flags, fd)
    }

    fn map(len: usize, protection: i32, flags: i32, fd: i32) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing of ours is touched.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: at as usize, len, is_writable: protection & libc::PROT_WRITE != 0 })
    }

    /// Writes as to another process, which gives an error where a store would give SIGBUS: no huge page is left. Not through
    /// /proc/self/mem: whoever is closed to others (PR_SET_DUMPABLE) has that for root alone.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !self.is_writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        mem::write(Pid::this(), self.at as u64 + at, bytes)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` has made, of which no reference exists.
        unsafe { libc::munmap(self.at as *mut _, self.len) };
    }
}

//! flock(2) and fcntl(2)'s locks; none of them waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `struct flock` on x86-64: type, whence (SEEK_SET), start, length, process.
pub fn bytes(exclusive: bool, start: i64, length: i64) -> [u8; 32] {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as u16;
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&kind.to_ne_bytes());
    bytes[8..16].copy_from_slice(&start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Locks the whole file for the open file description.
///
/// # Errors
/// EWOULDBLOCK when another one has it.
pub fn whole(fd: &OwnedFd, exclusive: bool) -> io::Result<()> {
    let how = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: a descriptor we borrow and an integer.
    super::check(i64::from(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) })).map(drop)
}

/// Locks bytes for the open file description; `lock` is a [`bytes`].
///
/// # Errors
/// EAGAIN when somebody else has them.
pub fn of_description(fd: &OwnedFd, lock: &[u8; 32]) -> io::Result<()> {
    // SAFETY: the kernel reads a struct flock, 32 bytes, which live across the call.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, lock.as_ptr()) };
    super::check(i64::from(set)).map(drop)
}

/// Takes a read lease on a file that is open for reading alone, and gives it up at once.
///
/// # Errors
/// EAGAIN when somebody has the file open, or mapped, for writing; EINVAL where there are no leases, EACCES on a file of
/// somebody else without CAP_LEASE.
pub fn can_lease(file: impl AsFd) -> io::Result<()> {
    const F_SETSIG: i32 = 10;
    const F_SETLEASE: i32 = 1024;
    let fd = file.as_fd().as_raw_fd();
    // Whoever opens it in that moment has us told, by a signal that does nothing: SIGIO would end us.
    for (command, argument) in
        [(F_SETSIG, libc::SIGURG), (F_SETLEASE, libc::F_RDLCK), (F_SETLEASE, libc::F_UNLCK)]
    {
        // SAFETY: a descriptor that we borrow and two integers; none of the commands takes a pointer.
        super::check(i64::from(unsafe { libc::fcntl(fd, command, argument) }))?;
    }
    Ok(())
}

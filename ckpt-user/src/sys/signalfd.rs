//! signalfd4(2) with the kernel's own mask of 64 bits.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A new descriptor of the signals in `mask` (bit n−1 is signal n).
pub fn create(mask: u64, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the mask lives across the call and has the size given; returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags) };
    let fd = super::check(fd)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The signals that wait for this thread or its process: bit 0 is signal 1 (rt_sigpending(2)).
pub fn waiting() -> io::Result<u64> {
    let mut set = 0u64;
    // SAFETY: the kernel writes eight bytes to `set`.
    let asked = unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut set, 8) };
    super::check(asked).map(|_| set)
}

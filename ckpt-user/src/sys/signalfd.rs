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

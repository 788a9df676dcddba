//! tee(2): a copy of what a pipe holds, taking nothing out.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The bytes that wait in the pipe behind `read_end`, at most `capacity`.
pub fn peek(read_end: BorrowedFd<'_>, capacity: usize) -> io::Result<Vec<u8>> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    let size = i32::try_from(capacity).unwrap_or(i32::MAX);
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETPIPE_SZ(size))?;
    // SAFETY: two descriptors that live across the call and integers; tee(2) touches no memory of ours.
    let got =
        unsafe { libc::tee(read_end.as_raw_fd(), write.as_raw_fd(), capacity, libc::SPLICE_F_NONBLOCK) };
    drop(write);
    match super::check(got as i64) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut content = Vec::new();
    std::fs::File::from(read).read_to_end(&mut content)?;
    Ok(content)
}

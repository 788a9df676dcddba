//! Processes that the program's parent forks for the worker, which makes of each what the image has.

use crate::daemon::link::Fork;
use crate::sys::{clone, wait};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Forks one that waits to be taken over, with the door that has come with the message. `chooses`: this process may choose its id.
/// Where it may not, the worker has seen to what the kernel gives next, and what has got another id is ended.
///
/// # Errors
/// EEXIST where it cannot have the id, or has not got it.
pub fn fork(Fork { pid, door }: Fork, descriptors: &[OwnedFd], chooses: bool) -> io::Result<i32> {
    let there = descriptors.first().ok_or(io::ErrorKind::InvalidData)?;
    let wanted = Pid::from_raw(pid);
    let born = clone::fork_waiting(chooses.then_some(wanted), Some((there.as_fd(), door)))?;
    if born != wanted {
        wait::send(born, libc::SIGKILL);
        wait::for_end(born)?;
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    Ok(pid)
}

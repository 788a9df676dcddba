//! Work in a thread of its own, whose directories and mounts are nobody else's and end with it.

use std::io;
use std::thread::{self, Builder, ScopedJoinHandle};

/// Does it there; `failed` is what is said of a thread that did not come to its end.
///
/// # Errors
/// No thread is to be had (EAGAIN), or what the work says.
pub fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send, failed: &'static str) -> io::Result<T> {
    let done = thread::scope(|scope| Builder::new().spawn_scoped(scope, work).map(ScopedJoinHandle::join));
    done?.unwrap_or_else(|_| Err(io::Error::other(failed)))
}

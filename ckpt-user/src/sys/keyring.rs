//! keyctl(2) about our own keyrings.

use super::check;
use std::io;

/// The serial number of the calling thread's keyring `which` (KEY_SPEC_*), 0 where it has none.
///
/// # Errors
/// ENOSYS where the kernel has no keys.
pub fn id(which: i64) -> io::Result<i32> {
    // SAFETY: integers only.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, 0, which, 0) }) {
        Err(e) if e.raw_os_error() == Some(libc::ENOKEY) => Ok(0),
        other => other.map(|id| id as i32),
    }
}

/// Its `type;uid;gid;permissions;name`, ended by a zero.
///
/// # Errors
/// It may not be looked at.
pub fn describe(which: i64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    // SAFETY: the kernel writes at most `bytes.len()` bytes.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 6, which, bytes.as_mut_ptr(), bytes.len()) })?;
    Ok(bytes)
}

/// Has this process join a session keyring of its own, without a name and empty.
///
/// # Errors
/// ENOSYS where the kernel has no keys.
pub fn join_new_session() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i64 = 1;
    // SAFETY: integers only; no name is given.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0) }).map(drop)
}

//! inotify(7), and files by their handles (open_by_handle_at(2)), which is how /proc names what is watched.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An instance that watches nothing, close-on-exec.
pub fn create(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes an integer, returns a new descriptor or -1.
    let fd = super::check(i64::from(unsafe { libc::inotify_init1(flags | libc::IN_CLOEXEC) }))?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Watches `path`; the number of the watch.
pub fn add(instance: &OwnedFd, path: &Path, mask: u32) -> io::Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: integers, and a string that lives across the call.
    let got = unsafe { libc::inotify_add_watch(instance.as_raw_fd(), path.as_ptr(), mask) };
    super::check(i64::from(got)).map(|watch| watch as i32)
}

pub fn remove(instance: &OwnedFd, watch: i32) -> io::Result<()> {
    // SAFETY: takes two integers.
    super::check(i64::from(unsafe { libc::inotify_rm_watch(instance.as_raw_fd(), watch) })).map(drop)
}

/// Opens what a file handle names, as a name alone (O_PATH), on the file system of the working directory.
///
/// # Errors
/// ESTALE when it is on another one, or is gone.
pub fn open_by_handle_here(kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    /// MAX_HANDLE_SZ.
    const LARGEST: usize = 128;
    // struct file_handle: length, kind, bytes; of ints, so that it is aligned.
    let mut words = [0u32; 2 + LARGEST / 4];
    if handle.len() > LARGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    (words[0], words[1]) = (handle.len() as u32, kind as u32);
    for (word, bytes) in words[2..].iter_mut().zip(handle.chunks(4)) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(four);
    }
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a struct file_handle, which `words` holds whole and which lives across the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, words.as_ptr(), flags) };
    let fd = super::check(fd)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

//! Shared anonymous memory as a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// A shared anonymous object of `size` bytes, as mmap(2) with MAP_SHARED | MAP_ANONYMOUS makes it (a memfd
/// would carry another name in /proc/PID/maps), reached through /proc/self/map_files.
pub fn create(size: u64) -> io::Result<OwnedFd> {
    let len = size as usize;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; nothing of ours is touched.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = at as u64;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + size);
    let file = File::options().read(true).write(true).open(path);
    // SAFETY: the mapping made above, of which no reference exists; the object lives on in `file`.
    unsafe { libc::munmap(at, len) };
    file.map(Into::into)
}

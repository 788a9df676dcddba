//! sched_getattr(2), sched_getaffinity(2), ioprio_get(2) of another thread; setpriority(2), sched_setaffinity(2) of the calling one.

use nix::unistd::Pid;
use std::io;

/// `struct sched_attr` (56 bytes on current kernels), as the kernel fills it.
pub fn attributes(tid: Pid) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; 64];
    let len = bytes.len();
    // SAFETY: the kernel writes at most `len` bytes into the buffer we own.
    super::check(unsafe {
        libc::syscall(libc::SYS_sched_getattr, tid.as_raw(), bytes.as_mut_ptr(), len, 0)
    })?;
    let size = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    bytes.truncate(size.clamp(48, len));
    Ok(bytes)
}

/// The CPU mask, as many bytes as the kernel uses.
pub fn affinity(tid: Pid) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: the kernel writes at most `mask.len()` bytes and returns how many.
    let got =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.as_raw(), mask.len(), mask.as_mut_ptr()) };
    mask.truncate(super::check(got)? as usize);
    Ok(mask)
}

/// Has the calling thread, and those that come from it, run on these processors alone.
///
/// # Errors
/// EINVAL: it may have none of them (cpuset(7)).
pub fn set_own_affinity(mask: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `mask.len()` bytes, which live across the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len(), mask.as_ptr()) };
    super::check(set).map(drop)
}

/// The nice value of the calling thread, and of those that come from it.
///
/// # Errors
/// EACCES: it would be less, which takes a right.
pub fn set_own_nice(nice: i32) -> io::Result<()> {
    // SAFETY: integers only (PRIO_PROCESS = 0, and 0 is the calling thread).
    super::check(unsafe { libc::syscall(libc::SYS_setpriority, 0, 0, nice) }).map(drop)
}

/// The I/O priority (class << 13 | level).
pub fn io_priority(tid: Pid) -> io::Result<u32> {
    // SAFETY: integers only (IOPRIO_WHO_PROCESS = 1).
    super::check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid.as_raw()) }).map(|p| p as u32)
}

/// Head of the thread's robust futex list and the length the kernel knows it by (get_robust_list(2)).
pub fn robust_list(tid: Pid) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one pointer and one size into our two variables.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, tid.as_raw(), &raw mut head, &raw mut len) };
    super::check(got).map(|_| (head, len))
}

/// Which group a thread shares a core with (PR_SCHED_CORE), as a number that is the same for all of a group; 0 for the
/// common one, `None` where the kernel has no such thing.
pub fn core_cookie(tid: Pid) -> Option<u64> {
    const PR_SCHED_CORE: i32 = 62;
    const GET: u64 = 0;
    const THREAD: u64 = 0;
    let mut cookie = 0u64;
    // SAFETY: the kernel writes one number to our variable.
    let got = unsafe { libc::prctl(PR_SCHED_CORE, GET, tid.as_raw(), THREAD, &raw mut cookie) };
    (got == 0).then_some(cookie)
}

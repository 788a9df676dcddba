//! The system calls by which `ckptbpf check` finds out what this kernel and these privileges allow.
//!
//! Each is tried for real, on this process's own memory or on a child made for it, and leaves nothing behind.
use std::{fs::File, io, os::fd::OwnedFd, ptr};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::check;
use super::clone::{CloneArgs, end_with};
use super::uffd::Uffd;

/// Bytes of a page on x86-64.
pub const PAGE: usize = 4096;

const PR_SET_MM_MAP: u64 = 14;

/// `struct prctl_mm_map`.
#[repr(C)]
#[derive(Default)]
struct MemoryMap {
    /// `start_code` to `env_end`, in the order of [`ckpt_common::MemoryLayout`].
    addresses: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Private anonymous memory of our own.
pub struct Pages {
    start: *mut u8,
    count: usize,
}

impl Pages {
    /// So many pages, each written to once.
    ///
    /// # Errors
    /// mmap(2) failed.
    pub fn new(count: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes; it replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), count * PAGE, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = Self { start: start.cast(), count };
        (0..count).for_each(|page| pages.write(page));
        Ok(pages)
    }

    /// Writes to a page.
    ///
    /// # Panics
    /// There is no such page.
    pub fn write(&self, page: usize) {
        assert!(page < self.count, "page {page} of {}", self.count);
        // SAFETY: inside the mapping, which is writable and ours alone.
        unsafe { self.start.add(page * PAGE).write_volatile(1) };
    }

    /// Address of the first.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.count * PAGE) as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing borrows from it.
        unsafe { libc::munmap(self.start.cast(), self.count * PAGE) };
    }
}

/// A userfaultfd by way of `/dev/userfaultfd` (Linux 6.1), whose file permissions say who may.
///
/// # Errors
/// There is no such device, or we may not open it.
pub fn userfaultfd_device() -> io::Result<OwnedFd> {
    Uffd::of_device(&File::options().read(true).write(true).open("/dev/userfaultfd")?.into())
}

/// A child that does nothing until it is killed, which it is when this is dropped.
pub struct Idle(Pid);

impl Idle {
    /// Makes it.
    ///
    /// # Errors
    /// fork(2) failed.
    pub fn new() -> io::Result<Self> {
        let parent = Pid::this();
        // SAFETY: the child makes only system calls.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self(child)),
            ForkResult::Child => {
                end_with(parent);
                loop {
                    // SAFETY: it takes nothing.
                    unsafe { libc::pause() };
                }
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Makes a child with that process id and reaps it.
///
/// # Errors
/// `EPERM` without CAP_CHECKPOINT_RESTORE, `EEXIST` if the id is taken, `ENOSYS`/`EINVAL` before Linux 5.5.
pub fn child_with_id(id: Pid) -> io::Result<()> {
    let tids = [id.as_raw()];
    let arguments = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: tids.as_ptr() as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: a copy of this process, as by fork(2); the child makes one system call and is gone.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) };
    if result == 0 {
        // SAFETY: ends the child, running nothing of the parent's.
        unsafe { libc::_exit(0) };
    }
    let child = i32::try_from(check(result)?).map_err(|_| io::ErrorKind::InvalidData)?;
    waitpid(Pid::from_raw(child), None)?;
    if child == id.as_raw() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Whether a child could leave for new namespaces (`CLONE_NEW*`).
///
/// # Errors
/// unshare(2).
pub fn unshare_in_child(flags: i32) -> io::Result<()> {
    // SAFETY: takes a number.
    in_child(|| unsafe { libc::unshare(flags) })
}

/// Whether a child can set where its memory's parts begin and end; it sets what it has.
///
/// # Errors
/// prctl(2): `EINVAL` for a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn set_memory_map_in_child(addresses: [u64; 11]) -> io::Result<()> {
    let map = MemoryMap { addresses, exe_fd: u32::MAX, ..MemoryMap::default() };
    // SAFETY: reads one `struct prctl_mm_map`; the child, whose layout is the one given, ends right after.
    in_child(|| unsafe {
        libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0)
    })
}

/// Whether there are restartable sequences: rseq(2), CONFIG_RSEQ.
#[must_use]
pub fn knows_rseq() -> bool {
    // SAFETY: an area at address 0 is none, and refused.
    let refused = unsafe { libc::syscall(libc::SYS_rseq, 0, 0, 0, 0) };
    check(refused).is_err_and(|error| error.raw_os_error() != Some(libc::ENOSYS))
}

/// The end of the heap.
#[must_use]
pub fn program_break() -> u64 {
    // SAFETY: asks without moving it.
    unsafe { libc::sbrk(0) as u64 }
}

/// Runs one system call in a child of its own.
fn in_child(call: impl FnOnce() -> libc::c_int) -> io::Result<()> {
    try_in_child(|| check(i64::from(call())).map(drop))
}

/// Does `work` in a child of its own, which the C library's fork(2) lets use memory; its errno comes back as the exit status.
///
/// # Errors
/// Those of `work`.
pub fn try_in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the child does `work`, with the one thread it has, and ends.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let errno = work().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
            // SAFETY: ends the child, running nothing of the parent's.
            unsafe { libc::_exit(errno) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::Interrupted.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_is_as_large_as_the_kernel_wants() {
        assert_eq!(size_of::<MemoryMap>(), 104);
    }

    #[test]
    fn an_errno_comes_back_from_the_child() {
        assert_eq!(unshare_in_child(-1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(unshare_in_child(0).is_ok());
    }
}

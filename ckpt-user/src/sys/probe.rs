//! The system calls by which `ckptbpf check` finds out what this kernel and these privileges allow.
//!
//! Each is tried for real, on this process's own memory or on a child made for it, and leaves nothing behind.
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

/// Bytes of a page on x86-64.
pub const PAGE: usize = 4096;

/// `userfaultfd(2)`: faults of user code only, which every user may have (Linux 5.11).
pub const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xAA;
const UFFDIO_API: u64 = 0xC018_AA3F;
const UFFDIO_REGISTER: u64 = 0xC020_AA00;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// `_IO(0xAA, 0)` on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: u64 = 0xAA00;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xC060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const KCMP_FILE: i32 = 0;
const PR_SET_MM_MAP: u64 = 14;

/// `struct uffdio_api`.
#[repr(C)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    wanted: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

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

    fn len(&self) -> u64 {
        (self.count * PAGE) as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing borrows from it.
        unsafe { libc::munmap(self.start.cast(), self.count * PAGE) };
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn new_descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// userfaultfd(2).
///
/// # Errors
/// The kernel has none (`ENOSYS`) or does not let us (`EPERM`).
pub fn userfaultfd(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes a number.
    new_descriptor(unsafe { libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC) })
}

/// A userfaultfd by way of `/dev/userfaultfd` (Linux 6.1), whose file permissions say who may.
///
/// # Errors
/// There is no such device, or we may not open it.
pub fn userfaultfd_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the request takes a number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC) };
    new_descriptor(libc::c_long::from(result))
}

/// The handshake: asks for features, gives those that the kernel has. Once a descriptor.
///
/// # Errors
/// One of those asked for is not there (`EINVAL`).
pub fn userfaultfd_features(fd: &OwnedFd, features: u64) -> io::Result<u64> {
    let mut api = UffdApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the request reads and writes one `struct uffdio_api`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
    check(libc::c_long::from(result))?;
    Ok(api.features)
}

/// Registers pages for write protection.
///
/// # Errors
/// ioctl_userfaultfd(2).
pub fn register_write_protect(fd: &OwnedFd, pages: &Pages) -> io::Result<()> {
    let mut range =
        UffdRegister { start: pages.address(), len: pages.len(), mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: the request reads and writes one `struct uffdio_register`; the pages are ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut range) };
    check(libc::c_long::from(result)).map(drop)
}

/// The pages written to since the last call, as ranges of page numbers; write-protects them again.
///
/// # Errors
/// `ENOTTY`: a kernel before 6.7.
pub fn written_pages(pages: &Pages) -> io::Result<Vec<std::ops::Range<u64>>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut regions = vec![Region::default(); pages.count];
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags: PM_SCAN_WP_MATCHING,
        start: pages.address(),
        end: pages.address() + pages.len(),
        regions: regions.as_mut_ptr() as u64,
        region_count: regions.len() as u64,
        mask: PAGE_IS_WRITTEN,
        wanted: PAGE_IS_WRITTEN,
        ..ScanArgument::default()
    };
    // SAFETY: the request reads and writes one `struct pm_scan_arg` and at most `region_count` regions.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    let found = usize::try_from(check(libc::c_long::from(result))?).unwrap_or(0);
    let page = |address: u64| (address - pages.address()) / PAGE as u64;
    Ok(regions.iter().take(found).map(|region| page(region.start)..page(region.end)).collect())
}

/// A child that does nothing until it is killed, which it is when this is dropped.
pub struct Idle(Pid);

impl Idle {
    /// Makes it.
    ///
    /// # Errors
    /// fork(2) failed.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the child makes only system calls.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self(child)),
            ForkResult::Child => loop {
                // SAFETY: both take numbers; the child ends with its parent.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::pause();
                }
            },
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

/// Copies a descriptor out of a process (Linux 5.6).
///
/// # Errors
/// pidfd_open(2), pidfd_getfd(2).
pub fn copy_descriptor(process: Pid, descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers.
    let pidfd = new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) })?;
    // SAFETY: takes numbers.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) })
}

/// Whether the same descriptor of two processes is the same open file.
///
/// # Errors
/// `ENOSYS`: a kernel without CONFIG_KCMP.
pub fn same_file(one: Pid, other: Pid, descriptor: RawFd) -> io::Result<bool> {
    // SAFETY: takes numbers.
    let result = unsafe {
        libc::syscall(libc::SYS_kcmp, one.as_raw(), other.as_raw(), KCMP_FILE, descriptor, descriptor)
    };
    Ok(check(result)? == 0)
}

/// Makes a child with that process id and reaps it.
///
/// # Errors
/// `EPERM` without CAP_CHECKPOINT_RESTORE, `EEXIST` if the id is taken, `ENOSYS`/`EINVAL` before Linux 5.5.
pub fn child_with_id(id: Pid) -> io::Result<()> {
    let tids = [id.as_raw()];
    // SAFETY: all zeros is a clone_args that asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = tids.as_ptr() as u64;
    arguments.set_tid_size = 1;
    // SAFETY: a copy of this process, as by fork(2); the child makes one system call and is gone.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
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

/// The end of the heap.
#[must_use]
pub fn program_break() -> u64 {
    // SAFETY: asks without moving it.
    unsafe { libc::sbrk(0) as u64 }
}

/// Runs one system call in a child of its own; its errno comes back as the exit status.
fn in_child(call: impl FnOnce() -> libc::c_int) -> io::Result<()> {
    // SAFETY: the child makes only system calls.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let errno =
                if call() < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { 0 };
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
    fn structures_are_of_the_sizes_in_the_request_numbers() {
        let size = |request: u64| usize::try_from(request >> 16 & 0x3fff).unwrap();
        assert_eq!(size_of::<UffdApi>(), size(UFFDIO_API));
        assert_eq!(size_of::<UffdRegister>(), size(UFFDIO_REGISTER));
        assert_eq!(size_of::<ScanArgument>(), size(PAGEMAP_SCAN));
        assert_eq!(size_of::<MemoryMap>(), 104);
    }

    #[test]
    fn an_errno_comes_back_from_the_child() {
        assert_eq!(unshare_in_child(-1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(unshare_in_child(0).is_ok());
    }
}

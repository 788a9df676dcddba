//! pidfd_open(2), pidfd_getfd(2), kcmp(2): names for processes and descriptors that cannot be reused.

use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor that names the process `pid`; readable once it has ended.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    open_with(pid, 0)
}

/// One that names the thread, which need not be the first of its process: for [`get_fd`].
///
/// # Errors
/// EINVAL before Linux 6.9 for another thread than the first.
pub fn of_thread(tid: Pid) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: u32 = libc::O_EXCL as u32;
    open(tid).or_else(|error| open_with(tid, PIDFD_THREAD).map_err(|_| error))
}

/// The same with flags: O_NONBLOCK, PIDFD_THREAD.
pub fn open_with(pid: Pid, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, returns a new descriptor or -1.
    let fd = super::check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), flags) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A duplicate of descriptor `fd` of the process, close-on-exec.
pub fn get_fd(process: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes three integers, returns a new descriptor or -1.
    let fd = super::check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: as above, a fresh descriptor that only we own.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The process that it names, as our pid namespace numbers it; none once it is gone for good.
///
/// # Errors
/// InvalidData when it is no pidfd.
pub fn names(process: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    // What fdinfo shows of other files, their owners may have chosen (DMA_BUF_SET_NAME); no file of a file system has such a name.
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", process.as_raw_fd()))?;
    if kind.to_str() != Some("anon_inode:[pidfd]") {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let field = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid: i32 = field.and_then(|v| v.trim().parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((pid > 0).then(|| Pid::from_raw(pid)))
}

/// How the process has ended, as wait(2) has it, once its parent has waited for it (Linux 6.15). `None`: it has not.
/// PIDFD_GET_INFO of linux/pidfd.h.
///
/// # Errors
/// The kernel does not tell.
pub fn exit_status(process: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    const EXIT: u64 = 1 << 3;
    /// struct pidfd_info in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    nix::ioctl_readwrite!(get_info, 0xff, 11, Info);
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the kernel writes no more than the size that the number says, which is the struct's.
    unsafe { get_info(process.as_raw_fd(), &raw mut info) }?;
    Ok((info.mask & EXIT != 0).then_some(info.exit_code))
}

/// Sends `signal` to the process.
pub fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null siginfo pointer, which pidfd_send_signal(2) allows.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    super::check(sent).map(drop)
}

/// What kcmp(2) compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File = 0,
    Vm = 1,
    Files = 2,
    Fs = 3,
    Sighand = 4,
}

/// Orders two kernel objects: `Equal` means they are one. `idx*` are descriptor numbers for [`Kind::File`].
pub fn compare(a: Pid, b: Pid, kind: Kind, idx_a: i32, idx_b: i32) -> io::Result<std::cmp::Ordering> {
    // SAFETY: five integers; kcmp(2) writes nothing.
    let got = unsafe {
        libc::syscall(libc::SYS_kcmp, a.as_raw(), b.as_raw(), kind as i32, idx_a as u64, idx_b as u64)
    };
    match super::check(got)? {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        2 => Ok(std::cmp::Ordering::Greater),
        _ => Err(io::Error::other("kcmp(2) cannot order these objects")),
    }
}

/// Orders the open description `of` (process, descriptor) and the one that the epoll `by` watches under `number`, the
/// `order`th with that number.
///
/// # Errors
/// ENOENT when it watches no such, EOPNOTSUPP on kernels before 4.13.
pub fn compare_watched(
    of: (Pid, i32),
    by: (Pid, i32),
    number: u32,
    order: u32,
) -> io::Result<std::cmp::Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // struct kcmp_epoll_slot (linux/kcmp.h): epoll, watched number, order.
    let slot = [by.1 as u32, number, order];
    // SAFETY: integers, and a pointer to 12 bytes that live across the call and are only read.
    let got = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            of.0.as_raw(),
            by.0.as_raw(),
            KCMP_EPOLL_TFD,
            of.1 as u64,
            slot.as_ptr(),
        )
    };
    match super::check(got)? {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        _ => Ok(std::cmp::Ordering::Greater),
    }
}

/// Who gets signals of the descriptor (F_SETOWN, F_SETSIG): kind (F_OWNER_…), id, signal; 0 for none.
pub fn signalled(fd: &OwnedFd) -> io::Result<(i32, i32, i32)> {
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    // struct f_owner_ex (fcntl(2)): kind and id.
    let mut owner = [0i32; 2];
    // SAFETY: the kernel writes 8 bytes to `owner`, which lives across the call.
    super::check(i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) }))?;
    // SAFETY: takes no argument.
    let signal = super::check(i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) }))?;
    Ok((owner[0], owner[1], signal as i32))
}

/// A close-on-exec duplicate with a number of at least `base`.
pub fn duplicate_above(fd: &OwnedFd, base: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and returns a fresh descriptor or -1.
    let new = super::check(i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, base) }))?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(new as i32) })
}

/// Makes `place` a close-on-exec duplicate of `fd`, under the number that it has.
pub fn duplicate_to(fd: &OwnedFd, place: &mut OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::dup3(fd, place, nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// A duplicate of our own standard stream 0, 1 or 2.
///
/// # Errors
/// EBADF when it is closed.
pub fn duplicate_standard(stream: i32) -> io::Result<OwnedFd> {
    // SAFETY: as above; the number need not be open.
    let new = super::check(i64::from(unsafe { libc::fcntl(stream, libc::F_DUPFD_CLOEXEC, 3) }))?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(new as i32) })
}

/// Makes our own standard stream 0, 1 or 2 a duplicate of `fd`, whatever it was.
pub fn duplicate_to_standard(fd: &OwnedFd, stream: i32) -> io::Result<()> {
    // SAFETY: dup2 takes two integers. What a standard stream was before is owned by nobody here.
    super::check(i64::from(unsafe { libc::dup2(fd.as_raw_fd(), stream) })).map(drop)
}

//! clone3(2) with chosen process ids, and time namespaces.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `struct clone_args` (linux/sched.h), version 2 with `cgroup`: 88 bytes.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

impl CloneArgs {
    /// The 88 bytes as the kernel reads them.
    pub fn to_bytes(self) -> [u8; 88] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut out = [0; 88];
        for (chunk, word) in out.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// For a child, right after its fork: it ends with its parent, which may be dead already.
pub fn end_with(parent: Pid) {
    // SAFETY: system calls that take numbers, and need no lock that another thread may hold.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent.as_raw() {
            libc::_exit(0);
        }
    }
}

/// The same with a parent in another pid namespace, by its pidfd.
///
/// # Errors
/// It cannot be looked at.
pub fn end_with_outside(parent: &OwnedFd) -> io::Result<()> {
    let mut fds = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
    // SAFETY: integers only.
    super::check(i64::from(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }))?;
    match poll(&mut fds, PollTimeout::ZERO)? {
        0 => Ok(()),
        _ => std::process::exit(1),
    }
}

/// Forks a child named `pid`, or as the kernel names it, that does nothing but wait to be taken over by ptrace. With a `door` it
/// has no descriptor but that, under this number.
///
/// Only while the calling process has one thread: the child is a copy of it and never returns from here.
///
/// # Errors
/// EEXIST when the id is taken, EPERM for one that is wanted without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
pub fn fork_waiting(pid: Option<Pid>, door: Option<(BorrowedFd<'_>, i32)>) -> io::Result<Pid> {
    let tid = [pid.map_or(0, Pid::as_raw)];
    let parent = Pid::this();
    let ready = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let mut args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if pid.is_some() {
        (args.set_tid, args.set_tid_size) = (tid.as_ptr() as u64, 1);
    }
    // SAFETY: fork-like clone3 (no CLONE_VM, no new stack): the child goes on here on its own copy of this
    // stack. `args` and `tid` live across the call. The child makes only async-signal-safe system calls.
    unsafe {
        let child = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>());
        if child == 0 {
            // Should ckptbpf die before it has seized this child, nothing else would end it.
            end_with(parent);
            if let Some((door, number)) = door {
                keep_only(door.as_raw_fd(), number);
            }
            loop {
                libc::pause();
            }
        }
        let child = super::check(child).map(|c| Pid::from_raw(c as i32))?;
        if door.is_some() {
            // The child closes its end once it has what it is to have; whoever takes it over must not come before that.
            let (from, to) = ready;
            drop(to);
            nix::unistd::read(from, &mut [0])?;
        }
        Ok(child)
    }
}

/// Leaves this process one descriptor, under another number, or ends it.
///
/// # Safety
/// Nothing that owns a descriptor may be used or dropped in this process any more.
unsafe fn keep_only(kept: i32, number: i32) {
    // SAFETY: system calls that take numbers; what they close is nobody's, as the caller promises.
    unsafe {
        let place = libc::dup2(kept, number);
        // It lasts if this process executes something; one that had that number already is as it was.
        libc::fcntl(place, libc::F_SETFD, 0);
        let below = place < 1 || libc::syscall(libc::SYS_close_range, 0, place - 1, 0) == 0;
        if place < 0 || !below || libc::syscall(libc::SYS_close_range, place + 1, u32::MAX, 0) != 0 {
            libc::_exit(1);
        }
    }
}

/// Forks this process: into the new namespaces that `flags` (CLONE_NEW…) name, and with id `pid` if one is wanted.
/// Returns the child's id, and `None` in the child.
///
/// Only while the calling process has one thread: the child is a copy of it and may do whatever it may.
///
/// # Errors
/// EEXIST when the id is taken, EPERM without the capabilities that namespaces and ids take.
pub fn fork(flags: u64, pid: Option<Pid>) -> io::Result<Option<Pid>> {
    let tid = [pid.map_or(0, Pid::as_raw)];
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if pid.is_some() {
        (args.set_tid, args.set_tid_size) = (tid.as_ptr() as u64, 1);
    }
    let mut own: u64 = 0;
    // SAFETY: the kernel writes one address, where this thread's id is kept by the C library, to `own`.
    if unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut own) } == 0 && own != 0 {
        args.flags |= (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64;
        args.child_tid = own;
    }
    // SAFETY: fork-like clone3 (no CLONE_VM, no new stack): the child goes on here on its own copy of this stack, and
    // as there is one thread, no lock is held by another. `args` and `tid` live across the call; the child's id is
    // written where the C library's own fork has it written.
    let child =
        super::check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    Ok((child != 0).then(|| Pid::from_raw(child as i32)))
}

/// Whether this process may choose the ids of its children. The right to is asked for before the id is looked at (`alloc_pid` of
/// kernel/pid.c), so that nothing is made.
pub fn may_choose_ids() -> bool {
    fork(0, Some(Pid::this())).is_err_and(|error| error.raw_os_error() == Some(libc::EEXIST))
}

/// Children of this process are born in a new time namespace from now on.
pub fn unshare_time() -> io::Result<()> {
    // SAFETY: one integer argument; affects only children created later.
    super::check(i64::from(unsafe { libc::unshare(0x80) })).map(drop)
}

/// Enters the namespace that `fd` (of /proc/PID/ns/…) names.
pub fn set_namespace(fd: std::os::fd::BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a descriptor we borrow and an integer.
    super::check(i64::from(unsafe { libc::setns(fd.as_raw_fd(), kind) })).map(drop)
}

/// The user who has made the user namespace that `fd` (of /proc/PID/ns/user) names, as seen from our own (ioctl_ns(2)).
pub fn owner_of(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    /// `NS_GET_OWNER_UID` of linux/nsfs.h.
    const GET_OWNER: u64 = 0xb704;
    let mut owner: u32 = 0;
    // SAFETY: a descriptor we borrow; the kernel writes the four bytes of `owner`.
    super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), GET_OWNER, &raw mut owner) }))?;
    Ok(owner)
}

/// The user namespace to which another one belongs (ioctl_ns(2)).
///
/// # Errors
/// EPERM where that is none of ours, nor below it.
pub fn user_namespace_of(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<std::fs::File> {
    use std::os::fd::{AsRawFd, FromRawFd};
    /// `NS_GET_USERNS` of linux/nsfs.h.
    const GET_USER: u64 = 0xb701;
    // SAFETY: a descriptor we borrow; this ioctl takes no argument and gives a number.
    let made = super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), GET_USER) }))?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else owns it.
    Ok(unsafe { std::fs::File::from_raw_fd(made as i32) })
}

/// Namespace kind for [`set_namespace`].
pub const NEWTIME: i32 = 0x80;

/// Orphaned descendants of this process become its children.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: integer arguments only.
    super::check(i64::from(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{probe, wait};

    #[test]
    fn the_one_descriptor_lasts_whatever_number_it_had() {
        let done = probe::try_in_child(|| {
            let (door, _other) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            for number in [door.as_raw_fd(), 100] {
                let child = fork_waiting(None, Some((door.as_fd(), number)))?;
                let shown = std::fs::read_to_string(format!("/proc/{child}/fdinfo/{number}"));
                wait::send(child, libc::SIGKILL);
                wait::for_end(child)?;
                let shown = shown?;
                let flags = shown.lines().find_map(|line| line.strip_prefix("flags:"));
                let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
                if flags.is_none_or(|flags| flags & libc::O_CLOEXEC != 0) {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            Ok(())
        });
        done.unwrap();
    }
}

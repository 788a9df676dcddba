//! Starting the program: ckptbpf's child, in its session and process group, with the signal mask that ckptbpf
//! was given.

use crate::job::ended::{self, Ended};
use nix::sys::signal::SigSet;
use nix::sys::wait::WaitStatus;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Ids of another user.
#[derive(Debug, Clone)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Starts `program`, with `environment` beside ckptbpf's own; returns its pid. The caller waits for it.
///
/// # Errors
/// What execve(2) said.
pub fn spawn(
    program: &[OsString],
    environment: &[(OsString, OsString)],
    mask: SigSet,
    run_as: Option<RunAs>,
) -> io::Result<nix::unistd::Pid> {
    let Some((name, args)) = program.split_first() else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let mut command = Command::new(name);
    command.args(args).envs(environment.iter().cloned());
    let groups: Vec<libc::gid_t> = run_as.iter().flat_map(|r| r.groups.clone()).collect();
    let ids = run_as.map(|r| (r.uid, r.gid));
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls on data that was
    // built before the fork.
    unsafe {
        command.pre_exec(move || {
            if let Some((uid, gid)) = ids {
                super::check(i64::from(libc::setgroups(groups.len(), groups.as_ptr())))?;
                super::check(i64::from(libc::setresgid(gid, gid, gid)))?;
                super::check(i64::from(libc::setresuid(uid, uid, uid)))?;
            }
            mask.thread_set_mask().map_err(io::Error::from)
        });
    }
    command.spawn().map(|child| nix::unistd::Pid::from_raw(child.id() as i32))
}

/// Has the command end with this process, should that be killed.
pub fn end_with_us(command: &mut Command) {
    let parent = nix::unistd::Pid::this();
    // SAFETY: between fork and exec the closure makes system calls that take numbers, and nothing else.
    unsafe {
        command.pre_exec(move || {
            super::clone::end_with(parent);
            Ok(())
        });
    }
}

/// The two sides of [`detach`].
#[derive(Debug)]
pub enum Detached {
    /// Detached once all is well; how the background ended, when it did so without a word.
    Parent(Ended),
    Child(Ready),
}

/// The background's word to the foreground.
#[derive(Debug)]
pub struct Ready(std::cell::RefCell<Option<std::os::fd::OwnedFd>>);

impl Ready {
    /// All is well; said once.
    pub fn tell(&self) {
        if let Some(fd) = self.0.take() {
            // The foreground may have been interrupted: then nobody waits.
            let _ = nix::unistd::write(&fd, b"1");
        }
    }
}

/// Goes on in a child with a session of its own; the parent waits for its word. Only while this process has one
/// thread.
pub fn detach() -> io::Result<Detached> {
    let (from, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => {
            drop(to);
            let mut word = [0];
            let got = nix::unistd::read(&from, &mut word)?;
            if got == 1 {
                return Ok(Detached::Parent(Ended::Detached));
            }
            Ok(Detached::Parent(match nix::sys::wait::waitpid(child, None)? {
                WaitStatus::Exited(_, status) => Ended::Exited(status as u8),
                WaitStatus::Signaled(_, signal, _) => Ended::Signaled(signal as i32),
                _ => Ended::Exited(ended::FAILED),
            }))
        }
        nix::unistd::ForkResult::Child => {
            drop(from);
            nix::unistd::setsid()?;
            Ok(Detached::Child(Ready(std::cell::RefCell::new(Some(to)))))
        }
    }
}

/// Closes every descriptor of this process but those `kept`, its standard streams too: for a process that only waits for
/// others, and keeps no pipe open that they have closed. Nothing that owns one of them may be used or dropped after it.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let close = |from: u32, to: u32| {
        // SAFETY: three integers. The caller goes on without the descriptors that are closed.
        let done = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        super::check(done).map(drop)
    };
    let mut from = 0;
    for one in kept {
        if one > from {
            close(from, one - 1)?;
        }
        from = one + 1;
    }
    close(from, u32::MAX)
}

/// Closes all that this process was started with but its standard streams: before it has opened anything itself, or where nothing
/// that owns a descriptor is used or dropped any more.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: three integers; nothing of ours is open yet, or in use any more.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) }).map(drop)
}

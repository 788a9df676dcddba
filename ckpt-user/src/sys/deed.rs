//! Children of ours that have each told the kernel one thing: what its words about them say then, and do not say of a
//! child that has told it nothing, is what that thing looks like in this kernel ([`crate::task::learnt`]).

use super::check;
use super::clone::end_with;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PR_SET_MDWE: i32 = 65;
const ARCH_SET_CPUID: i32 = 0x1012;
const SPECULATION_L1D: u64 = 2;
const SPECULATION_ENABLE: u64 = 2;
const LANDLOCK_CREATE_RULESET: i64 = 444;
const LANDLOCK_RESTRICT_SELF: i64 = 446;

/// One thing to tell the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Nothing,
    /// PR_SET_TSC.
    DenyCounter,
    /// ARCH_SET_CPUID.
    DenyCpuid,
    /// PR_SET_SPECULATION_CTRL: the first cache is emptied at each switch to another thread.
    FlushCache,
    /// PR_SET_THP_DISABLE, with its flags.
    DenyHugePages(u64),
    /// PR_SET_MDWE, with its bits.
    DenyExecutable(u64),
    /// landlock_restrict_self(2).
    Landlock,
}

impl Deed {
    /// Whether the kernel took it.
    ///
    /// # Safety
    /// The calling process is a child that does nothing else: most of this is never taken back.
    unsafe fn perform(self) -> bool {
        // SAFETY: integers, and one structure that lives across its call.
        unsafe {
            match self {
                Self::Nothing => true,
                Self::DenyCounter => libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) == 0,
                Self::DenyCpuid => libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0,
                Self::FlushCache => {
                    let set = libc::PR_SET_SPECULATION_CTRL;
                    libc::prctl(set, SPECULATION_L1D, SPECULATION_ENABLE, 0, 0) == 0
                }
                Self::DenyHugePages(flags) => libc::prctl(libc::PR_SET_THP_DISABLE, 1u64, flags, 0, 0) == 0,
                Self::DenyExecutable(bits) => libc::prctl(PR_SET_MDWE, bits, 0, 0, 0) == 0,
                Self::Landlock => {
                    // `struct landlock_ruleset_attr` in its first size: LANDLOCK_ACCESS_FS_EXECUTE.
                    let handled = 1u64;
                    let rules = libc::syscall(LANDLOCK_CREATE_RULESET, &raw const handled, 8, 0);
                    rules >= 0
                        && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                        && libc::syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
                }
            }
        }
    }
}

/// A child that has done its deed and waits. Dropping it ends it.
#[derive(Debug)]
pub struct Doer(Pid);

impl Doer {
    /// `None` where the kernel does not take the deed.
    ///
    /// # Errors
    /// No child can be made.
    pub fn of(deed: Deed) -> io::Result<Option<Self>> {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors to `ends`.
        check(i64::from(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }))?;
        // SAFETY: two new descriptors that nobody else knows.
        let [from, to] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let parent = Pid::this();
        // SAFETY: the child makes system calls only, which need no lock that another thread may hold.
        let child = unsafe {
            let child = check(libc::syscall(libc::SYS_fork))?;
            if child == 0 {
                end_with(parent);
                let done = u8::from(deed.perform());
                libc::syscall(libc::SYS_write, to.as_raw_fd(), &raw const done, 1);
                loop {
                    libc::syscall(libc::SYS_pause);
                }
            }
            Self(Pid::from_raw(child as i32))
        };
        drop(to);
        let mut done = 0u8;
        loop {
            // SAFETY: one byte that we own.
            match check(unsafe { libc::syscall(libc::SYS_read, from.as_raw_fd(), &raw mut done, 1) }) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(_) => return Ok((done == 1).then_some(child)),
            }
        }
    }

    pub fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for Doer {
    fn drop(&mut self) {
        super::wait::send(self.0, libc::SIGKILL);
        // ECHILD: the supervisor, which waits for whoever ends, was first.
        // SAFETY: waitpid writes nothing without a place for the status.
        while unsafe { libc::waitpid(self.0.as_raw(), std::ptr::null_mut(), libc::__WALL) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doer_has_done_its_deed_or_there_is_none() {
        let doer = Doer::of(Deed::DenyExecutable(1)).unwrap();
        if let Some(doer) = &doer {
            assert!(super::super::wait::is_alive(doer.pid()));
        }
        let pid = doer.map(|w| w.pid());
        assert!(pid.is_none_or(|pid| !super::super::wait::is_alive(pid)), "it is gone");
        assert!(Doer::of(Deed::DenyExecutable(u64::MAX)).unwrap().is_none(), "no kernel takes this");
    }
}

//! A secret in the memory of a process that any unconfined process of the same user may read: who can tell it is held back by
//! nothing that ptrace(2) minds (Landlock, security labels; `ptrace_may_access` of kernel/ptrace.c).

use super::clone::{self, end_with};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of the secret.
pub const LENGTH: usize = 16;

/// The process, which ends with this.
#[derive(Debug)]
pub struct Challenge {
    secret: Box<[u8; LENGTH]>,
    child: Pid,
}

impl Challenge {
    /// Starts it: a copy of this process, which has one thread and no right to anything but its user's. It is open to its user,
    /// can start no other process or thread, and holds no descriptor.
    ///
    /// # Errors
    /// Of fork(2), or there are no random numbers.
    pub fn start() -> io::Result<Self> {
        let mut secret = Box::new([0; LENGTH]);
        std::fs::File::open("/dev/urandom")?.read_exact(secret.as_mut_slice())?;
        let (from, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let parent = Pid::this();
        let Some(child) = clone::fork(0, None)? else { stay(parent, &to) };
        drop(to);
        let challenge = Self { secret, child };
        // Its word that it is open; none if it has failed.
        std::fs::File::from(from).read_exact(&mut [0; 1])?;
        Ok(challenge)
    }

    /// Where the secret is: in which process, and at which address.
    pub fn place(&self) -> (Pid, u64) {
        (self.child, self.secret.as_ptr() as u64)
    }

    /// Whether somebody has read it.
    pub fn is_met(&self, answer: &[u8]) -> bool {
        answer == self.secret.as_slice()
    }
}

impl Drop for Challenge {
    fn drop(&mut self) {
        let _ = kill(self.child, Signal::SIGKILL);
        while waitpid(self.child, None) == Err(nix::errno::Errno::EINTR) {}
    }
}

fn stay(parent: Pid, to: &OwnedFd) -> ! {
    end_with(parent);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let yes: libc::c_ulong = 1;
    // SAFETY: system calls that take numbers, a struct and a byte that live across the call, in a process with one thread
    // that has nothing to lose: whatever fails, it ends.
    unsafe {
        let is_open = libc::setrlimit(libc::RLIMIT_NPROC, &raw const none) == 0
            && libc::prctl(libc::PR_SET_DUMPABLE, yes) == 0;
        // Only Yama has this.
        libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
        if !is_open || libc::write(to.as_raw_fd(), [1u8].as_ptr().cast(), 1) != 1 {
            libc::_exit(1);
        }
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        loop {
            libc::pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    use std::io::IoSliceMut;

    #[test]
    fn who_may_trace_reads_the_secret_and_it_is_gone_afterwards() {
        let challenge = Challenge::start().unwrap();
        let (child, address) = challenge.place();
        let mut answer = [0; LENGTH];
        let remote = [RemoteIoVec { base: address as usize, len: LENGTH }];
        let got = process_vm_readv(child, &mut [IoSliceMut::new(&mut answer)], &remote).unwrap();
        assert_eq!(got, LENGTH);
        assert!(challenge.is_met(&answer) && !challenge.is_met(&[0; LENGTH]) && !challenge.is_met(b""));
        drop(challenge);
        assert_eq!(kill(child, None), Err(nix::errno::Errno::ESRCH));
    }
}

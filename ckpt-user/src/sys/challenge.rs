//! A secret in the memory of a process that any unconfined process of the same user may read: who can tell it is held back by
//! nothing that ptrace(2) minds (Landlock, security labels; `ptrace_may_access` of kernel/ptrace.c).
//!
//! Who may read it may have it run code, too, and it is outside of its user's control groups. So before it is open it has lost
//! whatever would be worth that: its descriptors, all system calls but four, and all but a second of processor time. And who traces it
//! may keep it from being gone, as long as they like: so its pidfd is told to whoever counts such processes before it is open.

use super::clone::{self, end_with};
use super::pidfd;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, write};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of the secret.
pub const LENGTH: usize = 16;

/// The process, which ends with this.
#[derive(Debug)]
pub struct Challenge {
    secret: Box<[u8; LENGTH]>,
    child: Pid,
}

impl Challenge {
    /// Starts it: a copy of this process, which has one thread, no right to anything but its user's, and PR_SET_NO_NEW_PRIVS.
    /// `told` has its pidfd before anybody else can reach it.
    ///
    /// # Errors
    /// Of fork(2) or of `told`, or there are no random numbers.
    pub fn start(told: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<Self> {
        let mut secret = Box::new([0; LENGTH]);
        random(secret.as_mut_slice())?;
        let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
        let (waits, go) = pipe2(OFlag::O_CLOEXEC)?;
        let parent = Pid::this();
        let Some(child) = clone::fork(0, None)? else { stay(parent, &waits, &to) };
        drop(to);
        let challenge = Self { secret, child };
        told(pidfd::open(child)?.as_fd())?;
        write(&go, &[1])?;
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
        const PATIENCE: Duration = Duration::from_secs(1);
        let _ = kill(self.child, Signal::SIGKILL);
        let until = Instant::now() + PATIENCE;
        // Whoever traces it may leave it there; it has ended all the same.
        while matches!(waitpid(self.child, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// getrandom(2): of no file that a path leads to.
fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes at most so many bytes to the slice, which lives across the call.
    let got = super::check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as i64)?;
    if got as usize == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

const fn filter(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// pause(2), exit_group(2), write(2), and prctl(2) for PR_SET_DUMPABLE; whatever else is called ends the process (seccomp(2)).
/// In struct seccomp_data the number is at 0, the architecture at 4, the first argument at 16.
const FILTER: [libc::sock_filter; 11] = {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const X86_64: u32 = 0xc000_003e;
    [
        filter(LOAD, 0, 0, 4),
        filter(EQUAL, 0, 7, X86_64),
        filter(LOAD, 0, 0, 0),
        filter(EQUAL, 6, 0, libc::SYS_pause as u32),
        filter(EQUAL, 5, 0, libc::SYS_exit_group as u32),
        filter(EQUAL, 4, 0, libc::SYS_write as u32),
        filter(EQUAL, 0, 2, libc::SYS_prctl as u32),
        filter(LOAD, 0, 0, 16),
        filter(EQUAL, 1, 0, libc::PR_SET_DUMPABLE as u32),
        filter(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        filter(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
};

/// Waits for its word to open, and then for its end.
fn stay(parent: Pid, waits: &OwnedFd, to: &OwnedFd) -> ! {
    end_with(parent);
    let limit = |most| libc::rlimit { rlim_cur: most, rlim_max: most };
    let (none, a_second) = (limit(0), limit(1));
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    let (mut word, yes, place): (_, libc::c_ulong, _) = ([0u8], 1, 0);
    // SAFETY: system calls that take numbers, and structs and a byte that live across each call, in a process with one thread that
    // has nothing to lose: whatever fails, it ends. Nothing that owns a descriptor is used after they are closed.
    unsafe {
        let is_safe = libc::read(waits.as_raw_fd(), word.as_mut_ptr().cast(), word.len()) == 1
            && libc::dup2(to.as_raw_fd(), place) == place
            && libc::syscall(libc::SYS_close_range, place + 1, u32::MAX, 0) == 0
            && libc::setrlimit(libc::RLIMIT_NPROC, &raw const none) == 0
            && libc::setrlimit(libc::RLIMIT_CPU, &raw const a_second) == 0;
        if !is_safe {
            libc::_exit(1);
        }
        // Only Yama has this.
        libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
        let is_open = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
            && libc::prctl(libc::PR_SET_DUMPABLE, yes) == 0
            && libc::write(place, word.as_ptr().cast(), word.len()) == 1;
        if !is_open {
            libc::_exit(1);
        }
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

    /// Run alone: it forks, and what it forks may do nothing that another thread could have begun.
    #[test]
    fn who_may_trace_reads_the_secret_and_the_process_can_do_nothing_else() {
        let alone = || -> io::Result<()> {
            nix::sys::prctl::set_no_new_privs()?;
            let challenge = Challenge::start(|_| Ok(()))?;
            let (child, address) = challenge.place();
            let mut answer = [0; LENGTH];
            let remote = [RemoteIoVec { base: address as usize, len: LENGTH }];
            let got = process_vm_readv(child, &mut [IoSliceMut::new(&mut answer)], &remote)?;
            let open = std::fs::read_dir(format!("/proc/{child}/fd"))?.count();
            let status = std::fs::read_to_string(format!("/proc/{child}/status"))?;
            let is_met = got == LENGTH && challenge.is_met(&answer) && !challenge.is_met(&[0; LENGTH]);
            drop(challenge);
            let is_gone = kill(child, None) == Err(nix::errno::Errno::ESRCH);
            let is_filtered = status.contains("Seccomp:\t2\n");
            if is_met && open == 1 && is_gone && is_filtered {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::EPROTO))
            }
        };
        crate::sys::probe::try_in_child(alone).unwrap();
    }

    #[test]
    fn another_call_ends_it() {
        let challenge = || -> io::Result<()> {
            nix::sys::prctl::set_no_new_privs()?;
            let Some(child) = clone::fork(0, None)? else {
                let program =
                    libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
                // SAFETY: as in `stay`.
                unsafe {
                    libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
                    libc::getpid();
                    libc::_exit(0);
                }
            };
            match waitpid(child, None)? {
                WaitStatus::Signaled(_, Signal::SIGSYS, _) => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
            }
        };
        crate::sys::probe::try_in_child(challenge).unwrap();
    }
}

//! Signals that the supervisor gets: read from a signalfd, sorted into forward, checkpoint, and ours.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// si_code of a signal that the kernel made itself: the terminal's, which the whole group has got.
const FROM_KERNEL: i32 = 0x80;

/// The supervisor's signals.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    /// The mask ckptbpf was started with: the program's.
    pub original: SigSet,
}

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A child ended or stopped.
    Child,
    /// A process sent it to ckptbpf: it is for the program.
    Forward(i32),
    /// The terminal sent it to the whole group: the program has it.
    Everyones,
}

/// Signals that report errors of this very process stay what they are.
const OWN: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGABRT];

impl Signals {
    /// Blocks everything and listens. Before any thread is started, so that all inherit the mask.
    pub fn listen() -> io::Result<Self> {
        let mut mask = SigSet::all();
        for signal in OWN {
            mask.remove(signal);
        }
        let original = mask.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let fd = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, original })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next signal that waits.
    pub fn take(&mut self) -> Option<Meaning> {
        let info = self.fd.read_signal().ok()??;
        let signal = info.ssi_signo as i32;
        Some(if signal == libc::SIGCHLD {
            Meaning::Child
        } else if info.ssi_code == FROM_KERNEL {
            Meaning::Everyones
        } else {
            Meaning::Forward(signal)
        })
    }
}

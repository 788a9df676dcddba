//! Signals that the supervisor gets: read from a signalfd, sorted into the program's, everybody's, and ours.

use crate::sys::signalfd;
use crate::sys::witness::{Sent, Witness};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// si_code of a signal that the kernel made itself: the terminal's, which the whole group has got.
const FROM_KERNEL: i32 = 0x80;

/// The supervisor's signals.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    /// The mask ckptbpf was started with: the program's.
    pub original: SigSet,
    witness: Option<Witness>,
}

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A child ended or stopped.
    Child,
    /// The program goes on, with which ckptbpf had stopped.
    Woken,
    /// A process sent it to ckptbpf: it is for the program.
    Forward(i32),
    /// Sent to the whole group or cgroup, by the terminal or a process: the program has it.
    Everyones(i32),
}

/// Signals that report errors of this very process stay what they are.
const OWN: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGABRT];

/// Lets signals wait for who listens later. Before any thread is started, so that all inherit the mask.
///
/// # Errors
/// Of sigprocmask(2).
pub fn hold() -> io::Result<()> {
    block().map(drop)
}

/// Blocks everything; the mask that ckptbpf was started with.
fn block() -> io::Result<SigSet> {
    static ORIGINAL: OnceLock<SigSet> = OnceLock::new();
    let mut mask = SigSet::all();
    for signal in OWN {
        mask.remove(signal);
    }
    let before = mask.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    Ok(*ORIGINAL.get_or_init(|| before))
}

impl Signals {
    /// Blocks everything and listens. Before any thread is started, so that all inherit the mask.
    pub fn listen() -> io::Result<Self> {
        let original = block()?;
        let fd = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, original, witness: None })
    }

    /// The same, with a witness that tells what was sent to ckptbpf alone; its process id is `id` if one is wanted.
    /// Before orphans become children of this process.
    pub fn listen_with_witness(id: Option<Pid>) -> io::Result<Self> {
        let signals = Self::listen()?;
        Ok(Self { witness: Some(Witness::start(id)?), ..signals })
    }

    /// Stops as the program has stopped: the shell that waits for us sees its job stopped. Returns when that goes on, or when
    /// SIGCONT comes, which is taken like any signal.
    pub fn stop_with(&mut self, program: Pid) {
        match &mut self.witness {
            Some(witness) => witness.stop_with(program),
            None => drop(raise(Signal::SIGSTOP)),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next signal that waits.
    pub fn take(&mut self) -> Option<Meaning> {
        let info = self.fd.read_signal().ok()??;
        let signal = info.ssi_signo as i32;
        // With EFBIG, of a file of ours that would be larger than we may make it (RLIMIT_FSIZE): nothing to the program.
        if signal == libc::SIGXFSZ && info.ssi_pid == std::process::id() {
            return self.take();
        }
        if signal == libc::SIGCHLD {
            return Some(Meaning::Child);
        }
        let sent = Sent { signal, pid: info.ssi_pid as i32, uid: info.ssi_uid };
        if self.witness.as_ref().is_some_and(|witness| witness.is_sender(sent)) {
            return Some(Meaning::Woken);
        }
        let everyones = match (info.ssi_code, &mut self.witness) {
            (FROM_KERNEL, witness) => {
                witness.iter_mut().for_each(|w| w.forget(signal));
                true
            }
            (libc::SI_USER, Some(witness)) => witness.has(sent) || (signal == libc::SIGCONT && is_to_stop()),
            _ => false,
        };
        Some(if everyones { Meaning::Everyones(signal) } else { Meaning::Forward(signal) })
    }
}

/// Whether job control is to stop this process: since its last SIGCONT, as the kernel drops what waits to stop it when that
/// comes, and that when a stop comes (prepare_signal() of kernel/signal.c), in the witness as well. Such a SIGCONT is over,
/// whoever has got it: passed on, it would undo the stop.
fn is_to_stop() -> bool {
    const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    signalfd::waiting().is_ok_and(|waiting| STOPS.iter().any(|stop| waiting & 1 << (stop - 1) != 0))
}

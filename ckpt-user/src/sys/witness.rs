//! The witness: a process beside ckptbpf that nobody has in mind who sends a signal.
//!
//! ckptbpf passes a signal on to the program, but not one that the program has itself: one sent to the whole process
//! group, or to every process of a cgroup one by one, as batch systems do. siginfo(7) does not tell these apart. So
//! there is a second process in the same group, session and cgroup, in which every signal stays pending: what it has
//! been sent too, by the same sender, was sent to all.
//!
//! And it wakes ckptbpf: that stops itself when job control has stopped the program, for a shell to see, and cannot see
//! itself that the program goes on. Who sends SIGCONT to each process in turn may well come to ckptbpf first, which then
//! finds the program stopped, and stops again.
//!
//! It is forked from a process with one thread. It holds nothing of ckptbpf's but one socket, ends with that,
//! and is no child of ckptbpf, which waits for its children.

use super::clone;
use super::wait::is_stopped;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long it waits for a signal that ckptbpf has: one that goes to each process in turn is still under way.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// How long ckptbpf waits for its word. It may be stopped.
const ANSWER: u16 = 500;

/// A signal that a process has sent with kill(2): its number, and the sender's process and user id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub signal: i32,
    pub pid: i32,
    pub uid: u32,
}

/// ckptbpf's end of it.
#[derive(Debug)]
pub struct Witness {
    /// None once it did not answer: from then on nothing has been seen.
    socket: Option<OwnedFd>,
    /// Its own SIGCONT is nobody's.
    pid: i32,
}

/// Between looks whether a stopped process goes on.
const LOOK: u16 = 20;

/// What it is asked to do beside testifying, in the place of a signal's number.
const WATCH: i32 = 0;
const WATCH_NO_MORE: i32 = -1;

impl Witness {
    /// Starts it, with process id `pid` if one is wanted. All signals are to be blocked already, and orphans not yet to
    /// become children of this process, which has one thread.
    ///
    /// # Errors
    /// Of socketpair(2) and fork(2); EEXIST when the id is taken.
    pub fn start(pid: Option<Pid>) -> io::Result<Self> {
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (ours, its) = socketpair(kind.0, kind.1, None, kind.2)?;
        let Some(between) = clone::fork(0, None)? else {
            let started = clone::fork(0, pid);
            if matches!(started, Ok(None)) {
                testify(&its);
            }
            // SAFETY: ends a process that shares nothing, without what its parent has to run at its own exit.
            unsafe { libc::_exit(started.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |_| 0)) }
        };
        // Should it be killed before it says anything, that is the end of the file.
        drop(its);
        match waitpid(between, None)? {
            WaitStatus::Exited(_, 0) => {
                let mut pid = [0; 4];
                // Its first word.
                if recv(ours.as_raw_fd(), &mut pid, MsgFlags::empty())? != pid.len() {
                    return Err(io::Error::other("it was killed while it was made"));
                }
                Ok(Self { socket: Some(ours), pid: i32::from_ne_bytes(pid) })
            }
            WaitStatus::Exited(_, error) => Err(io::Error::from_raw_os_error(error)),
            _ => Err(io::Error::other("it was killed while it was made")),
        }
    }

    /// Whether it has been sent the same, too. Asks once for each.
    pub fn has(&mut self, sent: Sent) -> bool {
        self.ask(sent, UNDER_WAY)
    }

    /// It has a signal that needs no asking: the terminal's. What it has is not to be mixed up with the next.
    pub fn forget(&mut self, signal: i32) {
        self.ask(Sent { signal, pid: -1, uid: 0 }, Duration::ZERO);
    }

    /// Whether it is the witness that has sent this.
    pub fn is_sender(&self, sent: Sent) -> bool {
        sent.pid == self.pid
    }

    /// Stops this process until `program`, which job control has stopped, goes on or ends, or somebody sends SIGCONT.
    pub fn stop_with(&mut self, program: Pid) {
        self.tell([WATCH, program.as_raw(), Pid::this().as_raw(), 0]);
        let _ = raise(Signal::SIGSTOP);
        self.tell([WATCH_NO_MORE, 0, 0, 0]);
    }

    fn tell(&self, words: [i32; 4]) {
        if let Some(socket) = &self.socket {
            // Whoever does not listen any more does not answer either.
            let _ = send(socket.as_raw_fd(), &bytes(words), MsgFlags::MSG_NOSIGNAL);
        }
    }

    fn ask(&mut self, sent: Sent, wait: Duration) -> bool {
        let Some(socket) = &self.socket else { return false };
        let question = bytes([sent.signal, sent.pid, sent.uid.cast_signed(), wait.as_millis() as i32]);
        let answer = || -> nix::Result<bool> {
            send(socket.as_raw_fd(), &question, MsgFlags::MSG_NOSIGNAL)?;
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(ANSWER))? == 0 {
                return Err(Errno::ETIMEDOUT);
            }
            let mut seen = [0];
            match recv(socket.as_raw_fd(), &mut seen, MsgFlags::MSG_DONTWAIT)? {
                1 => Ok(seen[0] != 0),
                _ => Err(Errno::ECONNRESET),
            }
        };
        let answer = answer();
        if let Err(error) = answer {
            log::debug!("what the whole process group is sent can no longer be told: {error}");
            self.socket = None;
        }
        answer.unwrap_or(false)
    }
}

/// The witness's life.
fn testify(socket: &OwnedFd) -> ! {
    // Failing to, it would only keep files and mounts busy.
    let _ = nix::unistd::chdir("/");
    let _ = nix::sys::prctl::set_name(c"ckptbpf-witness");
    let _ = super::spawn::close_all_but(&[socket.as_fd()]);
    let mask = u64::MAX;
    // SAFETY: the kernel reads eight bytes of `mask`.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, 8) };
    let _ = send(socket.as_raw_fd(), &Pid::this().as_raw().to_ne_bytes(), MsgFlags::MSG_NOSIGNAL);
    let mut question = [0; 16];
    let mut watched = None;
    loop {
        if let Some((program, keeper)) = watched {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(LOOK)) == Ok(0) {
                // Again and again: it may not have stopped yet.
                if is_stopped(keeper) && !is_stopped(program) {
                    let _ = kill(keeper, Signal::SIGCONT);
                }
                continue;
            }
        }
        match recv(socket.as_raw_fd(), &mut question, MsgFlags::empty()) {
            Ok(16) => {}
            Err(Errno::EINTR) => continue,
            // SAFETY: ends this process, which has nothing to clean up.
            _ => unsafe { libc::_exit(0) },
        }
        let word = |at: usize| question[at..].first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
        let sent = Sent { signal: word(0), pid: word(4), uid: word(8).cast_unsigned() };
        watched = (sent.signal == WATCH).then(|| (Pid::from_raw(word(4)), Pid::from_raw(word(8))));
        if sent.signal > 0 {
            let seen = take_pending(sent, Duration::from_millis(word(12).unsigned_abs().into()));
            let _ = send(socket.as_raw_fd(), &[u8::from(seen)], MsgFlags::MSG_NOSIGNAL);
        }
    }
}

fn bytes(words: [i32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
    bytes
}

/// Takes every pending signal of this number; whether `sent` was among them. Waits for it at most `wait`.
fn take_pending(sent: Sent, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    let set = 1u64 << (sent.signal.clamp(1, 64) - 1);
    let mut seen = false;
    loop {
        let left = if seen { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
        let time = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: all-zero is a valid siginfo_t (plain integers).
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel reads `set` (eight bytes) and `time` and fills `info`; all live across the call.
        let got = unsafe {
            libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, &raw mut info, &raw const time, 8)
        };
        if got > 0 {
            // SAFETY: of a signal from kill(2), which si_code is checked to say, both are filled.
            seen |= info.si_code == libc::SI_USER
                && unsafe { (info.si_pid(), info.si_uid()) } == (sent.pid, sent.uid);
        } else if Errno::last() != Errno::EINTR {
            return seen;
        }
    }
}

//! A traced thread as a typestate: [`Running`] → [`Stopped`] → [`Running`]; registers exist only on `Stopped`.
//!
//! ```text
//!   seize ──▶ Running ──interrupt+wait──▶ Stopped ──detach──▶ (untraced)
//!                ▲                           │
//!                └──── cont / syscall ───────┘
//! ```
//! Every call must come from the thread that seized (ptrace(2)); nothing here stops by a signal.

use super::probe;
use super::regs::Regs;
use super::xsave::LEGACY;
use nix::unistd::Pid;
use std::io;
use std::time::{Duration, Instant};

/// PTRACE_SEIZE options (linux/ptrace.h).
pub const O_TRACESYSGOOD: i32 = 1;
pub const O_TRACEFORK: i32 = 1 << 1;
pub const O_TRACECLONE: i32 = 1 << 3;
pub const O_TRACEEXEC: i32 = 1 << 4;
pub const O_EXITKILL: i32 = 1 << 20;
/// Needs CAP_SYS_ADMIN; lifts the tracee's seccomp filters while it is traced.
pub const O_SUSPEND_SECCOMP: i32 = 1 << 21;

const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const PEEKSIGINFO: u32 = 0x4209;
const SECCOMP_GET_FILTER: u32 = 0x420c;
const SECCOMP_GET_METADATA: u32 = 0x420d;
const SET_DISPATCH: u32 = 0x4210;
const GET_DISPATCH: u32 = 0x4211;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const NT_X86_XSTATE: usize = 0x202;
const NT_PRFPREG: usize = 2;
const UNTOLD: &str = "this kernel tells nobody where threads have registered restartable sequences (rseq(2)); Linux 5.13 or newer does";
const PEEKSIGINFO_SHARED: u32 = 1;

/// Why a traced thread stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_EVENT_STOP by our PTRACE_INTERRUPT (or a new child's first stop).
    Interrupted,
    /// The thread's group is stopped by this signal (job control).
    Group(i32),
    /// A signal is about to be delivered; it must be given back.
    Signal(i32),
    /// System call entry or exit (PTRACE_SYSCALL).
    Syscall,
    /// PTRACE_EVENT_FORK/VFORK/CLONE/EXEC…: the event's number.
    Event(i32),
}

/// The thread ended instead of stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Died(pub i32);

/// What waiting for a thread gave.
pub enum Waited {
    Stopped(Stopped),
    Died(Died),
    /// The deadline passed; the thread still runs.
    TimedOut(Running),
}

/// A seized thread that runs.
#[derive(Debug)]
pub struct Running {
    tid: Pid,
    whose: Whose,
}

/// A seized thread that stands still. Who drops one of the program's lets it run on, whatever has failed: nobody else could
/// (only on the tracer's thread does that do anything).
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    stop: Stop,
    whose: Whose,
}

/// Whose a thread is decides what becomes of it when an error drops it where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// It goes on.
    Program,
    /// A skeleton is no program yet: it stands until it ends with us (PTRACE_O_EXITKILL).
    Ours,
}

/// Where a thread's rseq area lies (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RseqArea {
    pub pointer: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

/// As long as most stops take.
const SPIN: Duration = Duration::from_micros(100);

/// After this, what is waited for may have died.
const LONG: Duration = Duration::from_millis(5);

fn request(req: u32, tid: Pid, addr: usize, data: usize) -> io::Result<i64> {
    // SAFETY: ptrace reads or writes only what `addr` and `data` point to; every caller in this file
    // passes either plain numbers or pointers to live, correctly sized buffers of its own frame.
    super::check(unsafe { libc::ptrace(req, tid.as_raw(), addr, data) })
}

/// Attaches to `tid` without stopping it.
///
/// # Errors
/// EPERM when another tracer is attached or the credentials do not allow it; ESRCH when it is gone.
pub fn seize(tid: Pid, options: i32) -> io::Result<Running> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize)?;
    let whose = if options & O_EXITKILL == 0 { Whose::Program } else { Whose::Ours };
    Ok(Running { tid, whose })
}

/// Takes over a skeleton's thread that the kernel attached by itself (PTRACE_O_TRACECLONE/FORK).
pub fn adopt(tid: Pid) -> Running {
    Running { tid, whose: Whose::Ours }
}

/// A thread of the program that was seized before, and was not let go of.
pub fn still_seized(tid: Pid) -> Running {
    Running { tid, whose: Whose::Program }
}

/// A thread of the program that was found standing, after whoever had asked it to had given up.
pub fn found_standing(tid: Pid, stop: Stop) -> Stopped {
    Stopped { tid, stop, whose: Whose::Program }
}

impl Running {
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Asks the thread to stop; returns at once.
    pub fn interrupt(&self) -> io::Result<()> {
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map(drop)
    }

    /// Waits for the next stop until `deadline` (forever when `None`).
    ///
    /// A killed process's first thread is not to be had from waitpid(2) before all of its other threads are, and whoever
    /// waits here does not take these: so its state is looked at, too.
    pub fn wait(self, deadline: Option<Instant>) -> io::Result<Waited> {
        let started = Instant::now();
        let mut has_ended = false;
        loop {
            let mut status = 0;
            // SAFETY: `status` outlives the call; waitpid writes nothing else.
            let got =
                unsafe { libc::waitpid(self.tid.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
            if got < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if got == 0 {
                if deadline.is_some_and(|d| Instant::now() >= d) {
                    return Ok(Waited::TimedOut(self));
                }
                if has_ended {
                    return Ok(Waited::Died(Died(libc::SIGKILL)));
                }
                // A stop takes some 30 µs: spin that long, then give the CPU away.
                let waited = started.elapsed();
                if waited < SPIN {
                    std::hint::spin_loop();
                } else if waited < LONG {
                    std::thread::sleep(Duration::from_micros(40));
                } else {
                    has_ended = self.has_ended();
                    std::thread::sleep(Duration::from_micros(500));
                }
                continue;
            }
            if !libc::WIFSTOPPED(status) {
                super::wait::keep(self.tid, status);
                return Ok(Waited::Died(Died(status)));
            }
            let (tid, whose) = (self.tid, self.whose);
            return Ok(Waited::Stopped(Stopped { tid, stop: classify(status), whose }));
        }
    }

    /// Whether this thread, whatever other ones there are, has ended.
    pub fn has_ended(&self) -> bool {
        let stat = crate::task::proc::ProcDir::process(self.tid).stat();
        stat.map_or(true, |stat| matches!(stat.state(), 'Z' | 'X'))
    }

    /// Waits without a deadline for a stop; a death is an error.
    pub fn wait_stopped(self) -> io::Result<Stopped> {
        match self.wait(None)? {
            Waited::Stopped(stopped) => Ok(stopped),
            Waited::Died(Died(status)) => Err(io::Error::other(format!(
                "the thread ended while it was traced (wait status {status:#x})"
            ))),
            Waited::TimedOut(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }
}

pub(super) fn classify(status: i32) -> Stop {
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        event => Stop::Event(event),
    }
}

impl Stopped {
    pub fn tid(&self) -> Pid {
        self.tid
    }

    pub fn stop(&self) -> Stop {
        self.stop
    }

    pub fn regs(&self) -> io::Result<Regs> {
        // SAFETY: all-zero is a valid user_regs_struct (plain integers).
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETREGS, self.tid, 0, (&raw mut regs) as usize)?;
        Ok(regs)
    }

    pub fn set_regs(&self, regs: &Regs) -> io::Result<()> {
        request(libc::PTRACE_SETREGS, self.tid, 0, std::ptr::from_ref(regs) as usize).map(drop)
    }

    /// The extended state (x87, SSE, AVX, …) in the XSAVE format of this CPU; its first 512 bytes on one without XSAVE.
    pub fn xstate(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; 16 << 10];
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut get = |what: usize| request(libc::PTRACE_GETREGSET, self.tid, what, (&raw mut iov) as usize);
        match get(NT_X86_XSTATE) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => get(NT_PRFPREG)?,
            got => got?,
        };
        buffer.truncate(iov.iov_len);
        Ok(buffer)
    }

    /// As [`Self::xstate`] gives it.
    pub fn set_xstate(&self, state: &[u8]) -> io::Result<()> {
        let iov = libc::iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
        let what = if state.len() == LEGACY { NT_PRFPREG } else { NT_X86_XSTATE };
        request(libc::PTRACE_SETREGSET, self.tid, what, (&raw const iov) as usize).map(drop)
    }

    /// Blocked signals, bit N-1 for signal N.
    pub fn sigmask(&self) -> io::Result<u64> {
        let mut mask = 0u64;
        request(GETSIGMASK, self.tid, 8, (&raw mut mask) as usize)?;
        Ok(mask)
    }

    pub fn set_sigmask(&self, mask: u64) -> io::Result<()> {
        request(SETSIGMASK, self.tid, 8, (&raw const mask) as usize).map(drop)
    }

    /// The rseq area, all zero where none is registered.
    ///
    /// # Errors
    /// `Unsupported` on a kernel that knows such areas and tells nobody of them: Linux 4.18 to 5.12.
    pub fn rseq(&self) -> io::Result<RseqArea> {
        #[repr(C)]
        #[derive(Default)]
        struct Configuration {
            pointer: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut c = Configuration::default();
        let size = size_of::<Configuration>();
        match request(GET_RSEQ_CONFIGURATION, self.tid, size, (&raw mut c) as usize) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                if probe::knows_rseq() {
                    return Err(io::Error::new(io::ErrorKind::Unsupported, UNTOLD));
                }
            }
            told => drop(told?),
        }
        Ok(RseqArea { pointer: c.pointer, size: c.size, signature: c.signature, flags: c.flags })
    }

    /// The code of the seccomp filter that was installed as the last but `back`; `None` behind the oldest.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN or when the caller has filters itself, EINVAL for a thread without filters.
    pub fn seccomp_filter(&self, back: usize) -> io::Result<Option<Vec<u8>>> {
        const INSTRUCTION: usize = 8;
        let count = match request(SECCOMP_GET_FILTER, self.tid, back, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => other? as usize,
        };
        let mut code = vec![0u8; count * INSTRUCTION];
        // It stands still: its filters stay as they are.
        request(SECCOMP_GET_FILTER, self.tid, back, code.as_mut_ptr() as usize)?;
        Ok(Some(code))
    }

    /// Whether the same filter was installed with SECCOMP_FILTER_FLAG_LOG (Linux 4.16).
    pub fn is_seccomp_logged(&self, back: usize) -> io::Result<bool> {
        const LOG: u64 = 2;
        let mut metadata = [back as u64, 0];
        request(SECCOMP_GET_METADATA, self.tid, size_of_val(&metadata), metadata.as_mut_ptr() as usize)?;
        Ok(metadata[1] & LOG != 0)
    }

    /// Its seccomp filters do nothing until it is let go of, or its tracer ends. `options` are those it has.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN or when the caller has filters itself.
    pub fn suspend_seccomp(&self, options: i32) -> io::Result<()> {
        self.set_options(options | O_SUSPEND_SECCOMP)
    }

    /// PR_SET_SYSCALL_USER_DISPATCH as it is: on or off, selector, offset, length. `None` before Linux 6.4.
    pub fn dispatch(&self) -> io::Result<Option<[u64; 4]>> {
        let mut words = [0u64; 4];
        match request(GET_DISPATCH, self.tid, size_of_val(&words), words.as_mut_ptr() as usize) {
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(None),
            other => other.map(|_| Some(words)),
        }
    }

    /// # Errors
    /// EINVAL for what no thread could have set.
    pub fn set_dispatch(&self, words: [u64; 4]) -> io::Result<()> {
        request(SET_DISPATCH, self.tid, size_of_val(&words), words.as_ptr() as usize).map(drop)
    }

    /// Signals queued for this thread (`shared` false) or its process, oldest first: 128-byte siginfo each.
    pub fn pending(&self, shared: bool) -> io::Result<Vec<[u8; 128]>> {
        #[repr(C)]
        struct Args {
            off: u64,
            flags: u32,
            nr: i32,
        }
        let mut all = Vec::new();
        loop {
            let mut chunk = [[0u8; 128]; 16];
            let args =
                Args { off: all.len() as u64, flags: if shared { PEEKSIGINFO_SHARED } else { 0 }, nr: 16 };
            let got =
                request(PEEKSIGINFO, self.tid, (&raw const args) as usize, chunk.as_mut_ptr() as usize)?;
            all.extend_from_slice(&chunk[..got as usize]);
            if got < 16 {
                return Ok(all);
            }
        }
    }

    /// The event's message: the new task's id after a fork or clone event.
    pub fn event_message(&self) -> io::Result<u64> {
        let mut message = 0u64;
        request(libc::PTRACE_GETEVENTMSG, self.tid, 0, (&raw mut message) as usize)?;
        Ok(message)
    }

    /// Runs on, delivering `signal` if not 0.
    pub fn cont(self, signal: i32) -> io::Result<Running> {
        request(libc::PTRACE_CONT, self.tid, 0, signal as usize)?;
        Ok(self.runs())
    }

    /// To wait for once more: it has been killed where it stood.
    pub fn runs(self) -> Running {
        let running = Running { tid: self.tid, whose: self.whose };
        std::mem::forget(self);
        running
    }

    /// Runs on, delivering `signal` if not 0, into a PTRACE_EVENT_STOP asked for beforehand.
    pub fn cont_interrupted(self, signal: i32) -> io::Result<Running> {
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0)?;
        self.cont(signal)
    }

    /// Runs to the next system call entry or exit.
    pub fn syscall(self) -> io::Result<Running> {
        self.syscall_with(0)
    }

    /// The same, delivering `signal` if not 0.
    pub fn syscall_with(self, signal: i32) -> io::Result<Running> {
        request(libc::PTRACE_SYSCALL, self.tid, 0, signal as usize)?;
        Ok(self.runs())
    }

    /// Lets go of the thread: the thaw. A group-stop stays one.
    pub fn detach(self) -> io::Result<()> {
        let result = self.release();
        std::mem::forget(self);
        result
    }

    fn release(&self) -> io::Result<()> {
        let signal = if let Stop::Signal(signal) = self.stop { signal } else { 0 };
        request(libc::PTRACE_DETACH, self.tid, 0, signal as usize).map(drop)
    }

    pub fn set_options(&self, options: i32) -> io::Result<()> {
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, options as usize).map(drop)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.whose == Whose::Program {
            // ESRCH: it was killed meanwhile, which is its right.
            let _ = self.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wait::{Change, next_change, unreaped};
    use super::*;
    use crate::job::ended::Ended;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    #[expect(clippy::zombie_processes, reason = "what is tested takes its end")]
    fn a_first_thread_that_is_killed_beside_others_is_not_waited_for() {
        let program = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n\
                       print(flush=True)\ntime.sleep(1000)";
        let mut child = Command::new("python3").args(["-c", program]).stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let pid = child.id() as i32;
        let threads: Vec<i32> = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(threads.len(), 2);
        let stopped = |tid: i32| {
            let running = seize(Pid::from_raw(tid), 0).unwrap();
            running.interrupt().unwrap();
            running.wait_stopped().unwrap()
        };
        let mut all: Vec<Stopped> = threads.into_iter().map(stopped).collect();
        let at = all.iter().position(|one| one.tid().as_raw() == pid).unwrap();
        let first = all.remove(at).cont(0).unwrap();
        child.kill().unwrap();
        assert!(matches!(first.wait(None).unwrap(), Waited::Died(_)));
        // Now its other thread is taken, and it can be.
        let other = all.remove(0).runs();
        assert!(matches!(other.wait(None).unwrap(), Waited::Died(_)));
        let again = still_seized(Pid::from_raw(pid));
        assert!(matches!(again.wait(None).unwrap(), Waited::Died(_)));
        // How it ended is not lost with that.
        let killed = Ended::Signaled(libc::SIGKILL);
        assert_eq!(unreaped(Pid::from_raw(pid)), Some(killed));
        let next = || next_change().ok().flatten();
        let told: Vec<_> = std::iter::from_fn(next).filter(|(one, _)| one.as_raw() == pid).collect();
        assert_eq!(told, [(Pid::from_raw(pid), Change::Ended(killed))]);
    }
}

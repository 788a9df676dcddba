//! One system call inside a living program, in a way that heals itself.
//!
//! The thread's registers point into a short piece of code placed where nothing ever runs: the zeros behind
//! the vdso's ELF image. The code makes the call and then, by itself, puts back every register it has
//! touched and jumps to where the thread was; an interrupted system call is issued again
//! (or continued by `restart_syscall(2)`, whose restart block no step here touches). So a tracer that is
//! killed at any instant leaves the thread going on as if nothing had been.
//!
//! ```text
//!  at+0    syscall                      the call
//!          mov edi,eax; mov eax,3; syscall        close(2) its result, where the result is a descriptor
//!          rt_sigprocmask(2)           its own mask, where signals are held up
//!          mov rdi/rsi/rdx/r10/r8/r9/rcx/r11/rax, imm64
//!          jmp [rip+0]; .quad target    where the thread was
//! ```
//! Stepping uses PTRACE_SYSCALL, never PTRACE_SINGLESTEP: a step's SIGTRAP would reset the action of a
//! program that blocks or ignores it (force_sig() of kernel/signal.c).

use super::mem::Forced;
use super::ptrace::{O_TRACESYSGOOD, Stop, Stopped};
use super::regs::{FIRST_KEY, Regs, Restart, has_protection_keys, key_rights, restart_of, to_words};
use std::io;
use std::ops::Range;

/// Room that the code needs, in bytes.
pub const CODE_LEN: usize = 160;

/// A system call to make: its number and six arguments.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub number: i64,
    pub args: [u64; 6],
}

impl Call {
    pub fn new(number: i64, args: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Self { number, args: all }
    }
}

/// Finds room for the code in the zeros at the end of the vdso.
///
/// # Errors
/// NotFound when the vdso has no such room; then nothing can be injected into this process.
pub fn find_room(memory: &Forced, vdso: &Range<u64>) -> io::Result<u64> {
    let mut bytes = vec![0; (vdso.end - vdso.start) as usize];
    memory.read(vdso.start, &mut bytes)?;
    let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
    let start = (used + 16).next_multiple_of(16);
    if start + CODE_LEN > bytes.len() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the vdso has no room for injected code"));
    }
    Ok(vdso.start + start as u64)
}

/// Makes `call` in `thread` with code at `at`. With `keep`, the result is a descriptor: `keep` sees it while
/// it is open in the program, and it is closed there before the thread goes on.
///
/// Returns the raw result (negative: -errno) and the thread, stopped with the registers it had, or at the handler of a
/// signal that has come meanwhile.
///
/// # Errors
/// From ptrace; the thread then still heals itself as soon as it runs.
pub fn call(
    memory: &Forced,
    thread: Stopped,
    at: u64,
    call: Call,
    keep: Option<&mut dyn FnMut(i32) -> io::Result<()>>,
) -> io::Result<(i64, Stopped)> {
    undisturbed(&thread)?;
    let (result, thread) = made(memory, thread, at, call, keep, false)?;
    Ok((result?, thread))
}

/// The same with its signals held up until the thread has its registers back: none of them puts a frame where the call writes.
/// No result: nothing was called, as the thread was stopped from outside and stands elsewhere.
///
/// # Errors
/// As of [`call()`].
pub fn call_held(
    memory: &Forced,
    thread: Stopped,
    at: u64,
    call: Call,
) -> io::Result<(Option<i64>, Stopped)> {
    undisturbed(&thread)?;
    let (result, thread) = made(memory, thread, at, call, None, true)?;
    Ok((result.ok(), thread))
}

/// What a thread gets back.
struct Original {
    regs: Regs,
    /// Where signals are held up meanwhile.
    mask: Option<u64>,
}

impl Original {
    /// The mask first: our code, which gives it back by itself, is left only then.
    fn give_back(&self, thread: &Stopped) -> io::Result<()> {
        self.mask.map_or(Ok(()), |mask| thread.set_sigmask(mask))?;
        thread.set_regs(&self.regs)
    }
}

/// The call itself. The inner error is that of `keep`; or, where signals are to be held up (`holds`), that the thread has taken one
/// before the call, which was not made then.
fn made(
    memory: &Forced,
    thread: Stopped,
    at: u64,
    call: Call,
    keep: Option<&mut dyn FnMut(i32) -> io::Result<()>>,
    holds: bool,
) -> io::Result<(io::Result<i64>, Stopped)> {
    let mut thread = thread;
    let mut original;
    // A signal may be delivered first: the thread takes it as it would have, and stops again at once.
    let entry = loop {
        let mask = if holds { Some(thread.sigmask()?) } else { held_up(&thread)? };
        original = Original { regs: thread.regs()?, mask };
        memory.write(at, &code(&original, keep.is_some(), at))?;
        thread.set_regs(&start(&original.regs, at, call))?;
        // Not before it stands at what undoes that.
        original.mask.map_or(Ok(()), |_| thread.set_sigmask(!0))?;
        let stopped = thread.syscall()?.wait_stopped()?;
        match stopped.stop() {
            Stop::Syscall => break stopped,
            Stop::Signal(_) => {
                thread = settle(stopped, &original)?;
                if holds && to_words(&thread.regs()?) != to_words(&original.regs) {
                    return Ok((Err(io::ErrorKind::Interrupted.into()), thread));
                }
            }
            _ => {
                original.give_back(&stopped)?;
                thread = stopped;
            }
        }
    };
    let exit = entry.syscall()?.wait_stopped()?;
    let result = exit.regs()?.rax as i64;
    let mut kept = Ok(());
    let last = match keep {
        Some(keep) if result >= 0 => {
            kept = keep(result as i32);
            let next = exit.syscall()?.wait_stopped()?;
            if next.stop() == Stop::Syscall {
                next.syscall()?.wait_stopped()?
            } else {
                // A signal comes first: the thread takes it, then the descriptor is closed by another call.
                let thread = settle(next, &original)?;
                let close = Call::new(libc::SYS_close, &[result as u64]);
                let (_, thread) = made(memory, thread, at, close, None, false)?;
                return Ok((kept.map(|()| result), thread));
            }
        }
        _ => exit,
    };
    let thread = settle(last, &original)?;
    memory.write(at, &[0; CODE_LEN])?;
    Ok((kept.map(|()| result), thread))
}

/// Signals wait for the end of a job-control stop, and go on waiting while the thread runs for us: one may end the program.
/// Returns its own mask where they are to be held up.
fn held_up(thread: &Stopped) -> io::Result<Option<u64>> {
    matches!(thread.stop(), Stop::Group(_)).then(|| thread.sigmask()).transpose()
}

/// Neither seccomp filters nor the program itself come between: the former are suspended, and a thread whose system calls
/// are handed back to the program, or that may not read what lies beside our code, makes none for us.
fn undisturbed(thread: &Stopped) -> io::Result<()> {
    const OFF: u64 = 0;
    if has_protection_keys() && key_rights(&thread.xstate()?).is_some_and(|rights| rights & FIRST_KEY != 0) {
        return Err(io::Error::other("it has denied itself the first protection key (pkeys(7))"));
    }
    if thread.dispatch()?.is_some_and(|words| words[0] != OFF) {
        return Err(io::Error::other(
            "its system calls are handed back to it (PR_SET_SYSCALL_USER_DISPATCH)",
        ));
    }
    let Err(error) = thread.suspend_seccomp(O_TRACESYSGOOD) else { return Ok(()) };
    let status = crate::task::proc::ProcDir::process(thread.tid()).status()?;
    if status.decimal("Seccomp").unwrap_or(0) == 0 {
        return Ok(());
    }
    Err(io::Error::new(error.kind(), format!("its seccomp filters cannot be suspended: {error}")))
}

/// Lets the thread run into the next PTRACE_EVENT_STOP, where the kernel decides about system call restarts, and
/// gives it its registers back. A signal on its way is delivered to those, as if it had come before the call:
/// the thread then stands at its handler.
fn settle(stopped: Stopped, original: &Original) -> io::Result<Stopped> {
    let mut stopped = stopped;
    let mut is_back = false;
    loop {
        let signal = match stopped.stop() {
            Stop::Interrupted | Stop::Group(_) => {
                if !is_back {
                    original.give_back(&stopped)?;
                }
                return Ok(stopped);
            }
            Stop::Signal(signal) => {
                if !is_back {
                    original.give_back(&stopped)?;
                    is_back = true;
                }
                signal
            }
            _ => 0,
        };
        stopped = stopped.cont_interrupted(signal)?.wait_stopped()?;
    }
}

fn start(original: &Regs, at: u64, call: Call) -> Regs {
    let [rdi, rsi, rdx, r10, r8, r9] = call.args;
    Regs { rip: at, rax: call.number as u64, orig_rax: u64::MAX, rdi, rsi, rdx, r10, r8, r9, ..*original }
}

fn code(original: &Original, close_result: bool, at: u64) -> Vec<u8> {
    const RESTART_SYSCALL: u64 = libc::SYS_restart_syscall as u64;
    let Original { regs: original, mask } = original;
    let (rax, target) = match restart_of(original) {
        Restart::No => (original.rax, original.rip),
        // `syscall` is two bytes long; rip is behind it.
        Restart::Again => (original.orig_rax, original.rip - 2),
        Restart::Block => (RESTART_SYSCALL, original.rip - 2),
    };
    let mut code = vec![0x0f, 0x05];
    if close_result {
        code.extend([0x89, 0xc7, 0xb8, 0x03, 0, 0, 0, 0x0f, 0x05]);
    }
    let mask_at = at + CODE_LEN as u64 - 8;
    if mask.is_some() {
        // mov eax, 14; mov edi, SIG_SETMASK; mov rsi, mask_at; mov edx, 0; mov r10d, 8; syscall. None of them changes a flag.
        code.extend([0xb8, 14, 0, 0, 0, 0xbf, 2, 0, 0, 0, 0x48, 0xbe]);
        code.extend(mask_at.to_le_bytes());
        code.extend([0xba, 0, 0, 0, 0, 0x41, 0xba, 8, 0, 0, 0, 0x0f, 0x05]);
    }
    let registers: [([u8; 2], u64); 9] = [
        ([0x48, 0xbf], original.rdi),
        ([0x48, 0xbe], original.rsi),
        ([0x48, 0xba], original.rdx),
        ([0x49, 0xba], original.r10),
        ([0x49, 0xb8], original.r8),
        ([0x49, 0xb9], original.r9),
        ([0x48, 0xb9], original.rcx),
        ([0x49, 0xbb], original.r11),
        ([0x48, 0xb8], rax),
    ];
    for (movabs, value) in registers {
        code.extend(movabs);
        code.extend(value.to_le_bytes());
    }
    code.extend([0xff, 0x25, 0, 0, 0, 0]);
    code.extend(target.to_le_bytes());
    if let Some(mask) = mask {
        code.resize(CODE_LEN - 8, 0);
        code.extend(mask.to_le_bytes());
    }
    code
}

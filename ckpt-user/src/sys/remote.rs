//! Lists of system calls run inside a skeleton: a process of ours that is becoming the restored one.
//!
//! A scratch mapping in the target holds a small loop, the list, and data that arguments point to:
//!
//! ```text
//!  base          loop code (one page)
//!  base+LIST     entries of 8 u64: number, six arguments, result; ended by number -1
//!  base+DATA     bytes for pointers
//! ```
//! The target's signals are all blocked but SIGTRAP, whose action is the default: the loop ends in `int3`.

use super::inject::Call;
use super::mem;
use super::ptrace::{Stop, Stopped, Waited, adopt};
use super::regs::{ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, Regs};
use nix::unistd::Pid;
use std::io;
use std::time::{Duration, Instant};

const LIST: u64 = 4096;
const MAX_CALLS: usize = 1023;
const DATA: u64 = LIST + 64 * 1024;
/// Bytes for data, and of the whole scratch mapping.
pub const DATA_LEN: usize = 192 << 10;
pub const SCRATCH_LEN: u64 = DATA + DATA_LEN as u64;

/// mov rax,[r12]; cmp rax,-1; je end; load six arguments; syscall; mov [r12+56],rax; add r12,64; jmp; end: int3
const LOOP: [u8; 56] = [
    0x49, 0x8b, 0x04, 0x24, 0x48, 0x83, 0xf8, 0xff, 0x74, 0x2b, 0x49, 0x8b, 0x7c, 0x24, 0x08, 0x49, 0x8b,
    0x74, 0x24, 0x10, 0x49, 0x8b, 0x54, 0x24, 0x18, 0x4d, 0x8b, 0x54, 0x24, 0x20, 0x4d, 0x8b, 0x44, 0x24,
    0x28, 0x4d, 0x8b, 0x4c, 0x24, 0x30, 0x0f, 0x05, 0x49, 0x89, 0x44, 0x24, 0x38, 0x49, 0x83, 0xc4, 0x40,
    0xeb, 0xcb, 0xcc, 0x0f, 0x05,
];
/// Where in the loop its one `syscall` stands.
const LOOP_SYSCALL: u64 = 40;
/// A `syscall` behind the loop's end.
const LONE_SYSCALL: u64 = 54;

/// A stopped skeleton thread that makes system calls for us.
#[derive(Debug)]
pub struct Remote {
    thread: Option<Stopped>,
    base: u64,
    used: usize,
    template: Regs,
}

/// The new task that a clone call made; it stands at its first stop, traced by us.
pub type NewTask = Pid;

impl Remote {
    /// Maps the scratch at `base` using the `syscall` instruction at `gadget` (in the vdso).
    pub fn new(thread: Stopped, gadget: u64, base: u64) -> io::Result<Self> {
        let template = thread.regs()?;
        thread.set_sigmask(!(1 << (libc::SIGTRAP - 1)))?;
        let mut remote = Self { thread: Some(thread), base, used: 0, template };
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let map = Call::new(libc::SYS_mmap, &[base, SCRATCH_LEN, prot as u64, flags as u64, u64::MAX, 0]);
        let got = remote.step(gadget, map)?;
        if got as u64 != base {
            return Err(io::Error::from_raw_os_error(-got as i32));
        }
        mem::write(remote.pid(), base, &LOOP)?;
        Ok(remote)
    }

    /// The same scratch, used by another thread or a forked child of the same skeleton.
    pub fn sibling(&self, thread: Stopped) -> io::Result<Self> {
        thread.set_sigmask(!(1 << (libc::SIGTRAP - 1)))?;
        let template = thread.regs()?;
        Ok(Self { thread: Some(thread), base: self.base, used: 0, template })
    }

    pub fn pid(&self) -> Pid {
        self.thread.as_ref().map_or(Pid::from_raw(0), Stopped::tid)
    }

    /// The stopped thread, for registers.
    ///
    /// # Errors
    /// When an earlier call lost it.
    pub fn thread(&self) -> io::Result<&Stopped> {
        self.thread.as_ref().ok_or_else(lost)
    }

    /// Gives the thread back; the scratch stays mapped.
    pub fn into_thread(self) -> io::Result<Stopped> {
        self.thread.ok_or_else(lost)
    }

    pub fn scratch(&self) -> std::ops::Range<u64> {
        self.base..self.base + SCRATCH_LEN
    }

    /// Places `bytes` in the data area (16-byte aligned) and returns their address; [`Remote::run`] frees all.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.used.next_multiple_of(16);
        if at + bytes.len() > DATA_LEN {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the data of one call list is too large"));
        }
        self.used = at + bytes.len();
        let address = self.base + DATA + at as u64;
        mem::write(self.pid(), address, bytes)?;
        Ok(address)
    }

    /// A nul-terminated string in the data area.
    pub fn string(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let mut with_nul = bytes.to_vec();
        with_nul.push(0);
        self.data(&with_nul)
    }

    /// Reads what a call wrote to `address`.
    pub fn read(&self, address: u64, out: &mut [u8]) -> io::Result<()> {
        mem::read(self.pid(), address, out)
    }

    /// Runs the calls one after the other, whatever they return; raw results (negative: -errno).
    pub fn run(&mut self, calls: &[Call]) -> io::Result<Vec<i64>> {
        let mut results = Vec::with_capacity(calls.len());
        for chunk in calls.chunks(MAX_CALLS) {
            let mut words: Vec<u64> = Vec::with_capacity(chunk.len() * 8 + 1);
            for call in chunk {
                words.push(call.number as u64);
                words.extend(call.args);
                words.push(0);
            }
            words.push(u64::MAX);
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            mem::write(self.pid(), self.base + LIST, &bytes)?;
            let regs =
                Regs { rip: self.base, r12: self.base + LIST, orig_rax: u64::MAX, rax: 0, ..self.template };
            let thread = self.thread.take().ok_or_else(lost)?;
            thread.set_regs(&regs)?;
            let mut stopped = thread.cont(0)?.wait_stopped()?;
            // A SIGSTOP from outside is not ours to keep: the restored program is not running yet.
            while stopped.stop() != Stop::Signal(libc::SIGTRAP) {
                stopped = stopped.cont(0)?.wait_stopped()?;
            }
            self.thread = Some(stopped);
            let mut back = vec![0; chunk.len() * 64];
            mem::read(self.pid(), self.base + LIST, &mut back)?;
            results.extend(back.chunks_exact(64).map(|e| word(&e[56..64]) as i64));
        }
        self.used = 0;
        Ok(results)
    }

    /// Runs the calls; the first that failed is the error.
    pub fn run_all(&mut self, calls: &[Call]) -> io::Result<()> {
        match self.run(calls)?.into_iter().find(|result| (-4095..0).contains(result)) {
            Some(error) => Err(io::Error::from_raw_os_error(-error as i32)),
            None => Ok(()),
        }
    }

    /// One call; a negative result becomes an error.
    pub fn call(&mut self, number: i64, args: &[u64]) -> io::Result<u64> {
        let result = self.run(&[Call::new(number, args)])?[0];
        if (-4095..0).contains(&result) {
            Err(io::Error::from_raw_os_error(-result as i32))
        } else {
            Ok(result as u64)
        }
    }

    /// A clone3 call with the tracing options that attach the new task to us.
    pub fn clone_call(&mut self, args: &[u8]) -> io::Result<NewTask> {
        let address = self.data(args)?;
        let call = Call::new(libc::SYS_clone3, &[address, args.len() as u64]);
        let got = self.step(self.base + LONE_SYSCALL, call)?;
        self.used = 0;
        if got < 0 { Err(io::Error::from_raw_os_error(-got as i32)) } else { Ok(Pid::from_raw(got as i32)) }
    }

    /// One call by the `syscall` instruction at `gadget`, by PTRACE_SYSCALL stops: needs no scratch and no
    /// SIGTRAP, so it can be the last one made. A call that a SIGSTOP from outside kept from beginning (clone(2) begins none
    /// while one waits) is made again.
    pub fn step(&mut self, gadget: u64, call: Call) -> io::Result<i64> {
        loop {
            self.enter(gadget, call)?;
            self.next_syscall_stop()?;
            let result = self.thread()?.regs()?.rax as i64;
            if ![-ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND].contains(&result) {
                return Ok(result);
            }
        }
    }

    /// Issues `call` by the `syscall` instruction at `gadget` and interrupts it at once: one that sleeps gives
    /// -ERESTART_RESTARTBLOCK and leaves its restart block with the thread, another one its result.
    pub fn interrupted(&mut self, gadget: u64, call: Call) -> io::Result<i64> {
        self.enter(gadget, call)?;
        self.settle()?;
        Ok(self.thread()?.regs()?.rax as i64)
    }

    /// Has the thread issue `call`; it stands at the entry.
    fn enter(&mut self, gadget: u64, call: Call) -> io::Result<()> {
        let [rdi, rsi, rdx, r10, r8, r9] = call.args;
        let (rip, rax, orig_rax) = (gadget, call.number as u64, u64::MAX);
        self.thread()?.set_regs(&Regs { rip, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..self.template })?;
        self.next_syscall_stop()
    }

    fn next_syscall_stop(&mut self) -> io::Result<()> {
        let thread = self.thread.take().ok_or_else(lost)?;
        let mut stopped = thread.syscall()?.wait_stopped()?;
        while stopped.stop() != Stop::Syscall {
            stopped = stopped.syscall()?.wait_stopped()?;
        }
        self.thread = Some(stopped);
        Ok(())
    }

    /// Ends the process: by exit_group(2), or by the signal of a wait(2) status, whose action must be the default.
    pub fn end(mut self, status: i32) -> io::Result<()> {
        let signal = status & 0x7f;
        // Leaves the thread at a stop from which a signal can be given to it.
        self.call(libc::SYS_getpid, &[])?;
        let thread = self.thread.take().ok_or_else(lost)?;
        let mut running = if signal == 0 {
            let rip = self.base + LONE_SYSCALL;
            let (rax, rdi) = (libc::SYS_exit_group as u64, (status >> 8 & 0xff) as u64);
            thread.set_regs(&Regs { rip, rax, rdi, orig_rax: u64::MAX, ..self.template })?;
            thread.cont(0)?
        } else {
            thread.set_sigmask(0)?;
            if signal == libc::SIGKILL {
                nix::sys::signal::kill(thread.tid(), nix::sys::signal::Signal::SIGKILL)?;
                adopt(thread.tid())
            } else {
                thread.cont(signal)?
            }
        };
        loop {
            match running.wait(None)? {
                Waited::Died(_) => return Ok(()),
                // A SIGSTOP from outside, before it could end.
                Waited::Stopped(stopped) => running = stopped.cont(signal)?,
                Waited::TimedOut(still) => running = still,
            }
        }
    }

    /// Ends this thread alone, as exit(2) does, by the `syscall` instruction at `gadget`; others of its process go on. What is
    /// left of it until they have ended, too, has this wait(2) status: of the first one there is something left, and its id is taken.
    pub fn end_thread(mut self, gadget: u64, status: i32, is_first: bool) -> io::Result<()> {
        // A first thread is not to be waited for while there are others.
        const LOOK: Duration = Duration::from_micros(100);
        let thread = self.thread.take().ok_or_else(lost)?;
        let (rax, rdi) = (libc::SYS_exit as u64, (status >> 8 & 0xff) as u64);
        thread.set_regs(&Regs { rip: gadget, rax, rdi, orig_rax: u64::MAX, ..self.template })?;
        let mut running = thread.cont(0)?;
        loop {
            match running.wait(is_first.then(|| Instant::now() + LOOK))? {
                // A SIGSTOP from outside is not ours to keep: the restored program is not running yet.
                Waited::Stopped(stopped) => running = stopped.cont(0)?,
                Waited::TimedOut(still) if !still.has_ended() => running = still,
                Waited::TimedOut(_) | Waited::Died(_) => return Ok(()),
            }
        }
    }

    /// Moves the thread from where it is to a stop at which SETREGS decides about system call restarts.
    pub fn settle(&mut self) -> io::Result<()> {
        let thread = self.thread.take().ok_or_else(lost)?;
        let mut stopped = thread.cont_interrupted(0)?.wait_stopped()?;
        while !matches!(stopped.stop(), Stop::Interrupted | Stop::Group(_)) {
            stopped = stopped.cont_interrupted(0)?.wait_stopped()?;
        }
        self.thread = Some(stopped);
        Ok(())
    }

    /// Blocks SIGTRAP, too: from here on there are no call lists.
    pub fn block_all(&self) -> io::Result<()> {
        self.thread()?.set_sigmask(!0)
    }

    /// Stops the whole process `pid` of this thread, as SIGSTOP does; its other threads take part as soon as they go on. Signals
    /// that wait stay blocked: one that ends a program would be taken first, as its number is lower. A SIGCONT that comes
    /// meanwhile leaves it running.
    pub fn stop(&mut self, gadget: u64, pid: Pid) -> io::Result<()> {
        self.settle()?;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
        // Where it would go on to if there is no stop.
        let (rip, rax, orig_rax) = (gadget, libc::SYS_getpid as u64, u64::MAX);
        self.thread()?.set_regs(&Regs { rip, rax, orig_rax, ..self.template })?;
        let mut stopped = self.thread.take().ok_or_else(lost)?;
        while !matches!(stopped.stop(), Stop::Group(_) | Stop::Syscall) {
            let given = if stopped.stop() == Stop::Signal(libc::SIGSTOP) { libc::SIGSTOP } else { 0 };
            stopped = stopped.syscall_with(given)?.wait_stopped()?;
        }
        let continued = stopped.stop() == Stop::Syscall;
        self.thread = Some(stopped);
        if continued { self.settle() } else { Ok(()) }
    }

    /// The address of the loop's `syscall` instruction.
    pub fn gadget(&self) -> u64 {
        self.base + LOOP_SYSCALL
    }
}

fn lost() -> io::Error {
    io::Error::other("the skeleton thread was lost")
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b))
}

//! What /proc does not show: signal actions, alternate stack, clear_child_tid, the exact program break.
//!
//! Two sources fill the same records: BPF iterators (kernel-assisted, nothing runs in the program) and,
//! where BPF is not to be had, system calls injected into the stopped threads.

use crate::sys::inject::{self, Call};
use crate::sys::mem::Forced;
use crate::sys::ptrace::Stopped;
use std::io;

/// What a thread keeps to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// sigaltstack(2): address, flags (SS_*), size in bytes.
    pub altstack: (u64, i32, u64),
    /// Address that the kernel clears and wakes when the thread ends (set_tid_address(2)), 0 for none.
    pub clear_child_tid: u64,
}

/// What a process keeps to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessState {
    /// `struct kernel_sigaction` of signals 1 to 64: handler, flags, restorer, mask.
    pub actions: Vec<[u64; 4]>,
    pub brk: u64,
}

/// Injects system calls into one stopped thread, counting them.
pub struct Injector<'a> {
    pub memory: &'a Forced,
    /// Where the code goes ([`inject::find_room`]).
    pub room: u64,
    /// System calls injected so far.
    pub count: u64,
}

/// Bytes below the stack pointer that the ABI leaves to leaf functions.
const RED_ZONE: u64 = 128;

impl Injector<'_> {
    fn call(&mut self, thread: Stopped, number: i64, args: &[u64]) -> io::Result<(i64, Stopped)> {
        self.count += 1;
        inject::call(self.memory, thread, self.room, Call::new(number, args), None)
    }

    /// Makes a call that writes `len` bytes to memory below the thread's red zone, which the ABI lets any
    /// signal overwrite; the bytes there are put back.
    fn reading(
        &mut self,
        thread: Stopped,
        len: usize,
        call: impl FnOnce(u64) -> (i64, Vec<u64>),
    ) -> io::Result<(Vec<u8>, Stopped)> {
        let at = (thread.regs()?.rsp - RED_ZONE - len as u64) & !15;
        let mut before = vec![0; len];
        // While a lazy restart's pages arrive, only this way of reading waits for one (and fails on what only
        // the next way can read).
        let _ = crate::sys::mem::read(thread.tid(), at, &mut before);
        self.memory.read(at, &mut before)?;
        let (number, args) = call(at);
        let (result, thread) = self.call(thread, number, &args)?;
        let mut out = vec![0; len];
        self.memory.read(at, &mut out)?;
        self.memory.write(at, &before)?;
        if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok((out, thread)) }
    }

    /// Reads one thread's state.
    pub fn thread_state(&mut self, thread: Stopped) -> io::Result<(ThreadState, Stopped)> {
        const PR_GET_TID_ADDRESS: u64 = 40;
        let (stack, thread) = self.reading(thread, 24, |at| (libc::SYS_sigaltstack, vec![0, at]))?;
        let (tid, thread) =
            self.reading(thread, 8, |at| (libc::SYS_prctl, vec![PR_GET_TID_ADDRESS, at, 0, 0, 0]))?;
        let state = ThreadState {
            altstack: (word(&stack[0..8]), word(&stack[8..12]) as i32, word(&stack[16..24])),
            clear_child_tid: word(&tid),
        };
        Ok((state, thread))
    }

    /// Reads the process's state through one of its threads. `caught` and `ignored` are the masks of
    /// /proc/PID/status: the other signals have their default action.
    pub fn process_state(
        &mut self,
        thread: Stopped,
        caught: u64,
        ignored: u64,
    ) -> io::Result<(ProcessState, Stopped)> {
        let mut thread = thread;
        let mut actions = vec![[0; 4]; 64];
        for signal in (1..=64u64).filter(|s| (caught | ignored) >> (s - 1) & 1 == 1) {
            let got = self.reading(thread, 32, |at| (libc::SYS_rt_sigaction, vec![signal, 0, at, 8]))?;
            thread = got.1;
            for (slot, bytes) in actions[signal as usize - 1].iter_mut().zip(got.0.chunks_exact(8)) {
                *slot = word(bytes);
            }
        }
        let (brk, thread) = self.call(thread, libc::SYS_brk, &[0])?;
        Ok((ProcessState { actions, brk: brk as u64 }, thread))
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b))
}

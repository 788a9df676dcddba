//! What /proc does not show: signal actions, alternate stack, clear_child_tid, the exact program break, interval
//! timers, and what an interrupted sleep would go on with.
//!
//! Two sources fill the same records: BPF iterators ([`super::iterators`]: nothing runs in the program) and,
//! where BPF is not to be had, system calls injected into the stopped threads ([`Injector`], below). Both give
//! the same image, but for the times, and for sleeps whose remaining time only the kernel knows.

use super::barriers;
use super::control::Known;
use super::denials::{ARCH_GET_CPUID, Instructions, L1D, Memory, PR_GET_MDWE};
use super::keyring;
use super::policy::{NODE_BITS, NODES, Policy};
use super::posix_timers::{self, PosixTimer};
use super::proc::ProcDir;
use super::tiles;
use super::timers::Timer;
use crate::memory::protection_keys::{self, Keys};
use crate::sys::inject::{self, Call};
use crate::sys::mem::Forced;
use crate::sys::ptrace::Stopped;
use std::io;

/// `SS_DISABLE`: no alternate stack.
const SS_DISABLE: i32 = 2;
/// `SS_AUTODISARM`, the one flag that is not derived.
const SS_AUTODISARM: i32 = 1 << 31;

/// What a thread keeps to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// sigaltstack(2): address, flags (SS_*), size in bytes.
    pub altstack: (u64, i32, u64),
    /// Address that the kernel clears and wakes when the thread ends (set_tid_address(2)), 0 for none.
    pub clear_child_tid: u64,
    /// What prctl(2) has set.
    pub control: Known,
    /// Whether it has, or may have, a memory policy that is not the default.
    pub has_policy: bool,
    /// Whether instructions of its are, or may be, denied.
    pub may_be_denied: bool,
    pub keyrings: keyring::Known,
    /// What no restart could give back, and why. Known only from BPF.
    pub lost: Option<(&'static str, &'static str)>,
    /// The same number is the same newest seccomp filter. Known only from BPF.
    pub filter: Option<u64>,
    /// Known only from BPF; means something only where the thread stopped in such a call.
    pub restart: Option<crate::sys::bpf::Restart>,
}

/// What a process keeps to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessState {
    /// `struct kernel_sigaction` of signals 1 to 64: handler, flags, restorer, mask.
    pub actions: Vec<[u64; 4]>,
    pub brk: u64,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub timers: [Timer; 3],
    /// PR_SET_DUMPABLE: 0 no, 1 yes, 2 for root alone.
    pub dumpable: u32,
    /// PR_SET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// Whether kinds of memory are, or may be, denied.
    pub may_be_denied: bool,
    /// MCL_FUTURE, with MCL_ONFAULT or without; 0 where new mappings are not locked, none where that is not known.
    pub locks_to_come: Option<u32>,
    /// Known only from BPF, and where this processor has any.
    pub protection_keys: Option<Keys>,
    /// Whether it has a local descriptor table (modify_ldt(2)).
    pub segments: bool,
    /// How many slots its futexes have where it has chosen that (PR_FUTEX_HASH). Known only from BPF.
    pub futex_slots: Option<u32>,
    /// Commands of membarrier(2) that it has registered for.
    pub barriers: u32,
}

/// An alternate stack in one form, whichever source it is from: SS_ONSTACK follows from the stack pointer.
pub fn altstack(base: u64, flags: i32, size: u64) -> (u64, i32, u64) {
    if size == 0 { (0, SS_DISABLE, 0) } else { (base, flags & SS_AUTODISARM, size) }
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
pub const RED_ZONE: u64 = 128;

impl Injector<'_> {
    /// Makes a call that writes nothing to memory.
    pub fn call(&mut self, thread: Stopped, number: i64, args: &[u64]) -> io::Result<(i64, Stopped)> {
        self.count += 1;
        inject::call(self.memory, thread, self.room, Call::new(number, args), None)
    }

    /// Makes a call that writes `len` bytes to memory below the thread's red zone, which the ABI lets any
    /// signal overwrite; the bytes there are put back.
    pub fn reading(
        &mut self,
        thread: Stopped,
        len: usize,
        call: impl Fn(u64) -> (i64, Vec<u64>),
    ) -> io::Result<(Vec<u8>, Stopped)> {
        let (result, bytes, thread) = self.asking(thread, len, call)?;
        if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok((bytes, thread)) }
    }

    /// The same, and what the call returns.
    fn asking(
        &mut self,
        thread: Stopped,
        len: usize,
        call: impl Fn(u64) -> (i64, Vec<u64>),
    ) -> io::Result<(i64, Vec<u8>, Stopped)> {
        /// More often a thread is not stopped from outside right before a call.
        const TRIES: u32 = 100;
        let mut thread = thread;
        for _ in 0..TRIES {
            let at = (thread.regs()?.rsp - RED_ZONE - len as u64) & !15;
            let mut before = vec![0; len];
            // While a lazy restart's pages arrive, only this way of reading waits for one (and fails on what only
            // the next way can read).
            let _ = crate::sys::mem::read(thread.tid(), at, &mut before);
            self.memory.read(at, &mut before)?;
            let (number, args) = call(at);
            self.count += 1;
            let asked = Call::new(number, &args);
            let (result, back) = inject::call_held(self.memory, thread, self.room, asked)?;
            thread = back;
            let Some(result) = result else { continue };
            let mut out = vec![0; len];
            self.memory.read(at, &mut out)?;
            self.memory.write(at, &before)?;
            return Ok((result, out, thread));
        }
        Err(io::Error::other("it is stopped from outside again and again"))
    }

    /// Reads one thread's state.
    pub fn thread_state(&mut self, thread: Stopped) -> io::Result<(ThreadState, Stopped)> {
        const PR_GET_TID_ADDRESS: u64 = 40;
        let (stack, thread) = self.reading(thread, 24, |at| (libc::SYS_sigaltstack, vec![0, at]))?;
        let (tid, thread) =
            self.reading(thread, 8, |at| (libc::SYS_prctl, vec![PR_GET_TID_ADDRESS, at, 0, 0, 0]))?;
        let (death, thread) = self
            .reading(thread, 4, |at| (libc::SYS_prctl, vec![libc::PR_GET_PDEATHSIG as u64, at, 0, 0, 0]))?;
        let (securebits, thread) =
            self.call(thread, libc::SYS_prctl, &[libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0])?;
        const FLAGS: usize = 9;
        let flags = ProcDir::process(thread.tid()).stat()?.number(FLAGS) as u32;
        let control = Known { parent_death: word(&death) as u32, flags, securebits: securebits as u32 };
        let (keyrings, thread) = self.keyrings(thread)?;
        let state = ThreadState {
            control,
            keyrings,
            lost: None,
            filter: None,
            has_policy: true,
            may_be_denied: true,
            altstack: altstack(word(&stack[0..8]), word(&stack[8..12]) as i32, word(&stack[16..24])),
            clear_child_tid: word(&tid),
            restart: None,
        };
        Ok((state, thread))
    }

    /// The thread's keyrings. Whoever has no session keyring has the user's from then on, as at any use of it.
    fn keyrings(&mut self, thread: Stopped) -> io::Result<(keyring::Known, Stopped)> {
        const KEYCTL: i64 = libc::SYS_keyctl;
        let mut found = keyring::Known::default();
        let (destination, mut thread) =
            self.call(thread, KEYCTL, &[keyring::SET_DESTINATION, keyring::NO_CHANGE])?;
        if destination < 0 {
            return Ok((found, thread));
        }
        found.destination = destination as u64;
        for (which, id) in [
            (keyring::THREAD, &mut found.thread),
            (keyring::PROCESS, &mut found.process),
            (keyring::SESSION, &mut found.session.serial),
        ] {
            let (got, back) = self.call(thread, KEYCTL, &[keyring::GET_KEYRING_ID, which as u64, 0])?;
            thread = back;
            *id = got.max(0) as i32;
        }
        let session = keyring::SESSION as u64;
        let describe = |at| (KEYCTL, vec![keyring::DESCRIBE, session, at, ckpt_common::KEYRING_NAME as u64]);
        let (_, described, thread) = self.asking(thread, ckpt_common::KEYRING_NAME, describe)?;
        let (bytes, thread) = self.call(thread, KEYCTL, &[keyring::READ, session, 0, 0])?;
        if let Some((permissions, name)) = keyring::described(&described) {
            let keys = bytes.max(0) as u64 / size_of::<i32>() as u64;
            found.session = keyring::Keyring { name, permissions, keys, ..found.session };
        }
        Ok((found, thread))
    }

    /// What is left of POSIX timers, and their intervals.
    pub fn timers(&mut self, thread: Stopped, timers: &mut [PosixTimer]) -> io::Result<Stopped> {
        let mut thread = thread;
        for timer in timers {
            let id = u64::from(timer.id);
            let (bytes, back) = self.reading(thread, 32, |at| (libc::SYS_timer_gettime, vec![id, at]))?;
            (timer.interval, timer.left) = posix_timers::times(&bytes);
            thread = back;
        }
        Ok(thread)
    }

    /// Whether there are memory policies: a kernel without NUMA has no such call.
    pub fn has_policies(&mut self, thread: Stopped) -> io::Result<(bool, Stopped)> {
        let (known, thread) = self.call(thread, libc::SYS_get_mempolicy, &[0, 0, 0, 0, 0])?;
        Ok((known != -i64::from(libc::ENOSYS), thread))
    }

    /// The memory policy of the thread, or of the mapping at an address; none for the default.
    pub fn policy(&mut self, thread: Stopped, of: Option<u64>) -> io::Result<(Option<Policy>, Stopped)> {
        const MPOL_F_ADDR: u64 = 2;
        let (address, flags) = of.map_or((0, 0), |address| (address, MPOL_F_ADDR));
        let ask = |at| (libc::SYS_get_mempolicy, vec![at, at + 8, NODE_BITS, address, flags]);
        let (bytes, thread) = self.reading(thread, 8 + NODES, ask)?;
        Ok((Policy::read(word(&bytes[..4]) as u32, &bytes[8..]), thread))
    }

    /// Whether new mappings are locked, as flags of mlockall(2): found out by mapping a page.
    pub fn locks_to_come(&mut self, thread: Stopped) -> io::Result<(u32, Stopped)> {
        const PAGE: u64 = 4096;
        let pid = thread.tid();
        let locked = || ProcDir::process(pid).status().map(|s| s.field("VmLck").map(str::to_owned));
        let before = locked()?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let map = [0, PAGE, protection as u64, flags as u64, u64::MAX, 0];
        let (at, mut thread) = self.call(thread, libc::SYS_mmap, &map)?;
        if at < 0 {
            return Err(io::Error::from_raw_os_error(-at as i32));
        }
        let mut found = 0;
        if locked()? != before {
            let there;
            (there, thread) = self.reading(thread, 1, |to| (libc::SYS_mincore, vec![at as u64, PAGE, to]))?;
            let on_fault = if there[0] & 1 == 0 { libc::MCL_ONFAULT } else { 0 };
            found = libc::MCL_FUTURE | on_fault;
        }
        let (_, thread) = self.call(thread, libc::SYS_munmap, &[at as u64, PAGE])?;
        Ok((found as u32, thread))
    }

    /// The instructions that are denied to the thread, if any are.
    pub fn instructions(&mut self, thread: Stopped) -> io::Result<(Option<Instructions>, Stopped)> {
        let (counter, thread) =
            self.reading(thread, 4, |at| (libc::SYS_prctl, vec![libc::PR_GET_TSC as u64, at, 0, 0, 0]))?;
        let (cpuid, thread) = self.call(thread, libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0])?;
        let speculation = [libc::PR_GET_SPECULATION_CTRL as u64, L1D, 0, 0, 0];
        let (cache, thread) = self.call(thread, libc::SYS_prctl, &speculation)?;
        Ok((Instructions::read(word(&counter) as u32, cpuid, cache), thread))
    }

    /// Whether the process may use tile registers.
    pub fn tiles(&mut self, thread: Stopped) -> io::Result<(bool, Stopped)> {
        let (components, thread) =
            self.reading(thread, 8, |at| (libc::SYS_arch_prctl, vec![tiles::GET, at]))?;
        Ok((tiles::are_permitted(word(&components)), thread))
    }

    /// The kinds of memory that are denied to the process, if any are.
    pub fn denied_memory(&mut self, thread: Stopped) -> io::Result<(Option<Memory>, Stopped)> {
        let (executable, thread) = self.call(thread, libc::SYS_prctl, &[PR_GET_MDWE, 0, 0, 0, 0])?;
        let huge_pages = [libc::PR_GET_THP_DISABLE as u64, 0, 0, 0, 0];
        let (huge_pages, thread) = self.call(thread, libc::SYS_prctl, &huge_pages)?;
        Ok((Memory::read(executable, huge_pages), thread))
    }

    /// What [`protection_keys::calls`] return.
    pub fn protection_keys(&mut self, thread: Stopped) -> io::Result<(Vec<i64>, Stopped)> {
        let (mut thread, mut results) = (thread, Vec::new());
        for call in protection_keys::calls() {
            let (result, back) = self.call(thread, call.number, &call.args)?;
            results.push(result);
            thread = back;
        }
        Ok((results, thread))
    }

    /// Reads the process's state through one of its threads.
    pub fn process_state(&mut self, thread: Stopped) -> io::Result<(ProcessState, Stopped)> {
        let mut thread = thread;
        let mut actions = vec![[0; 4]; 64];
        // All of them: an action that is the default may still have flags (SA_NOCLDWAIT).
        for signal in (1..=64u64).filter(|&s| !super::signals::is_fixed(s as u32)) {
            let got = self.reading(thread, 32, |at| (libc::SYS_rt_sigaction, vec![signal, 0, at, 8]))?;
            thread = got.1;
            for (slot, bytes) in actions[signal as usize - 1].iter_mut().zip(got.0.chunks_exact(8)) {
                *slot = word(bytes);
            }
        }
        let mut timers = [Timer::default(); 3];
        for (which, timer) in timers.iter_mut().enumerate() {
            let got = self.reading(thread, 32, |at| (libc::SYS_getitimer, vec![which as u64, at]))?;
            thread = got.1;
            let nanoseconds =
                |at: usize| word(&got.0[at..at + 8]) * 1_000_000_000 + word(&got.0[at + 8..at + 16]) * 1000;
            *timer = Timer { interval: nanoseconds(0), left: nanoseconds(16) };
        }
        let (brk, thread) = self.call(thread, libc::SYS_brk, &[0])?;
        let (dumpable, thread) =
            self.call(thread, libc::SYS_prctl, &[libc::PR_GET_DUMPABLE as u64, 0, 0, 0, 0])?;
        let (subreaper, thread) = self.reading(thread, 4, |at| {
            (libc::SYS_prctl, vec![libc::PR_GET_CHILD_SUBREAPER as u64, at, 0, 0, 0])
        })?;
        const ONE: usize = 8;
        let table = |at| (libc::SYS_modify_ldt, vec![0, at, ONE as u64]);
        let (segments, _, thread) = self.asking(thread, ONE, table)?;
        let (barriers, thread) = self.call(thread, libc::SYS_membarrier, &[barriers::GET, 0])?;
        let state = ProcessState {
            actions,
            brk: brk as u64,
            timers,
            dumpable: dumpable as u32,
            subreaper: word(&subreaper) != 0,
            may_be_denied: true,
            locks_to_come: None,
            protection_keys: None,
            segments: segments > 0,
            futex_slots: None,
            barriers: barriers::from_call(barriers),
        };
        Ok((state, thread))
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b))
}

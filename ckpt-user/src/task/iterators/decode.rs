//! From rows to what a capture wants to know, by the ids that we see. Pure, but for the CPU clocks that timers go by.

use super::lessons::{Lessons, raws, word};
use super::rows::{Rows, Thread};
use crate::freeze::rewind::{Wait, Waits};
use crate::memory::flags::{Names, Word};
use crate::memory::policy;
use crate::memory::protection_keys::Keys;
use crate::memory::vma::Raw;
use crate::sys::bpf::{FileRow, IntervalTimer, PidTable, ProcessRow, TimerRow, VmaRow};
use crate::task::barriers;
use crate::task::clock::{self, Cpu};
use crate::task::control::Known;
use crate::task::hidden::{ProcessState, ThreadState, altstack};
use crate::task::keyring;
use crate::task::posix_timers::{Overrun, Overruns};
use crate::task::proc::reached_by;
use crate::task::timers::Timer;
use nix::unistd::Pid;
use std::collections::HashMap;

/// `MMF_DUMPABLE_MASK`.
const MMF_DUMPABLE: u32 = 3;

/// SA_IMMUTABLE, SA_X32_ABI, SA_IA32_ABI: the kernel's own (arch/x86/include/asm/signal.h), never shown.
const KERNEL_FLAGS: u64 = 0x0380_0000;

/// Rows, and the processes that were asked about.
pub struct Answer<'a> {
    pub rows: Rows,
    /// In the order of [`Rows::hosts`].
    pub pids: &'a [Pid],
    pub lessons: &'a mut Lessons,
    /// Our pid namespace.
    pub namespace: u32,
}

impl Answer<'_> {
    /// By the host's ids.
    fn asked(&self) -> HashMap<u32, Pid> {
        self.rows.hosts.iter().copied().zip(self.pids.iter().copied()).collect()
    }

    fn ids(&self) -> PidTable {
        PidTable::new(self.rows.threads.iter().map(|thread| &thread.row.ids), self.namespace)
    }

    /// What threads and processes keep to themselves.
    pub fn state(&self) -> (HashMap<Pid, ThreadState>, HashMap<Pid, ProcessState>) {
        let (rows, table) = (&self.rows, self.ids());
        let own = |host: u32| table.own(host).map(|own| Pid::from_raw(own as i32));
        let state = |thread: &Thread| Some((own(thread.row.ids.pid)?, thread_state(thread, self.lessons)));
        let threads = rows.threads.iter().filter_map(state).collect();
        let mut actions: HashMap<u32, Vec<[u64; 4]>> = HashMap::new();
        for row in &rows.actions {
            let words = row.actions.iter().map(|a| [a.handler, a.flags & !KERNEL_FLAGS, a.restorer, a.mask]);
            actions.insert(row.tgid, words.collect());
        }
        let state = |row: &ProcessRow| {
            let (pid, actions) = (own(row.tgid)?, actions.get(&row.tgid)?);
            Some((pid, process_state(pid, row, actions.clone(), self.lessons)))
        };
        (threads, rows.processes.iter().filter_map(state).collect())
    }

    /// The mappings. Where a flag has no name yet, smaps is read, and has taught it from then on; how many processes it was read
    /// of is returned, too.
    pub fn mappings(&mut self) -> (HashMap<Pid, Vec<Raw>>, u64) {
        let mut of: HashMap<u32, Vec<VmaRow>> = HashMap::new();
        for row in &self.rows.mappings {
            of.entry(row.tgid).or_default().push(*row);
        }
        let (mut all, mut unnamed) = (HashMap::new(), 0);
        for (host, pid) in self.asked() {
            let Some(rows) = of.get(&host) else { continue };
            if let Some((mappings, has_taught)) = named(pid, rows, &mut self.lessons.names) {
                unnamed += u64::from(has_taught);
                all.insert(pid, mappings);
            }
        }
        (all, unnamed)
    }

    /// The descriptors of each process's own table.
    pub fn descriptors(&self) -> HashMap<Pid, Vec<FileRow>> {
        let mut all: HashMap<u32, Vec<FileRow>> = HashMap::new();
        // The table of a thread that has its own is not the process's: that is its first thread's, or, where that one has ended,
        // the only one that there is.
        for row in &self.rows.descriptors {
            let of_process = all.entry(row.tgid).or_default();
            match of_process.first().filter(|known| known.files != row.files) {
                Some(_) if row.tid != row.tgid => continue,
                Some(_) => of_process.clear(),
                None => {}
            }
            of_process.push(*row);
        }
        // Of whom nothing was told nothing is known, and /proc is read.
        let of = |(host, own): (u32, Pid)| Some((own, all.remove(&host)?));
        self.asked().into_iter().filter_map(of).collect()
    }

    /// How often timers have rung, by process and id.
    pub fn overruns(&self) -> Overruns {
        let own = self.asked();
        let count = |rings: i64| u64::try_from(rings).unwrap_or(0);
        let timer = |row: &TimerRow| {
            let (waiting, taken, anew) = (count(row.waiting), count(row.taken), row.anew != 0);
            Some(((*own.get(&row.tgid)?, row.id), Overrun { waiting, taken, anew }))
        };
        self.rows.timers.iter().filter_map(timer).collect()
    }

    /// How long threads still wait.
    pub fn waits(&self) -> Waits {
        let table = self.ids();
        let wait = |row: &super::rows::Waiting| {
            let tid = Pid::from_raw(table.own(row.tid)? as i32);
            Some((tid, Wait { number: row.number, switches: row.switches, expires: row.expires }))
        };
        self.rows.waiting.iter().filter_map(wait).collect()
    }
}

/// The mappings as smaps shows them, and whether that was read; none of a process that has ended.
fn named(pid: Pid, rows: &[VmaRow], names: &mut Names) -> Option<(Vec<Raw>, bool)> {
    let words: Vec<Word> = rows.iter().map(word).collect();
    // One that cannot be read has ended: who reads it next says so.
    let via = reached_by(pid);
    let known = names.give(raws(via, "maps").ok()?, &words);
    let (mut mappings, has_taught) = match known {
        Some(known) => (known, false),
        None => {
            let shown = raws(via, "smaps").ok()?;
            names.learn_from(&shown, &words);
            (shown, true)
        }
    };
    policy::note(&mut mappings, rows);
    Some((mappings, has_taught))
}

fn thread_state(thread: &Thread, lessons: &Lessons) -> ThreadState {
    let (row, signals) = (&thread.row, &thread.row.signals);
    ThreadState {
        altstack: altstack(signals.stack_base, signals.stack_flags as i32, signals.stack_size),
        clear_child_tid: row.user.clear_child_tid,
        control: Known {
            parent_death: row.ids.pdeath_signal,
            flags: row.ids.flags,
            securebits: row.settings.securebits,
        },
        may_be_denied: lessons.learnt.may_be_denied(row.settings.thread_flags),
        has_policy: row.settings.memory_policy != 0,
        keyrings: keyring::Known::of(&row.keyrings),
        lost: lessons.learnt.lost(row),
        filter: (row.settings.filter != 0).then_some(row.settings.filter),
        restart: thread.restart.clone(),
    }
}

fn process_state(pid: Pid, row: &ProcessRow, actions: Vec<[u64; 4]>, lessons: &Lessons) -> ProcessState {
    ProcessState {
        actions,
        brk: row.memory.brk,
        timers: timers(pid, row),
        dumpable: row.memory_flags as u32 & MMF_DUMPABLE,
        subreaper: row.child_subreaper != 0,
        may_be_denied: lessons.learnt.memory_may_be_denied(row.memory_flags),
        locks_to_come: lessons.names.of(row.default_flags).map(|names| locks(&names)),
        protection_keys: Keys::read(row.key_map, row.execute_only_key),
        segments: row.segments != 0,
        barriers: barriers::from_state(row.barriers),
        futex_slots: (row.futex_chosen != 0).then(|| slots(row.futex_mask)),
    }
}

/// The flags of mlockall(2) that give each new mapping these flags.
fn locks(names: &[String]) -> u32 {
    let given = |name: &str, flag: i32| if names.iter().any(|n| n == name) { flag } else { 0 };
    (given("lo", libc::MCL_FUTURE) | given("lf", libc::MCL_ONFAULT)) as u32
}

/// One that has no hash of its own has none to mask with.
fn slots(mask: u32) -> u32 {
    if mask == 0 { 0 } else { mask.wrapping_add(1) }
}

/// The interval timers as getitimer(2) gives them.
fn timers(pid: Pid, row: &ProcessRow) -> [Timer; 3] {
    let cpu = |clock| clock::cpu_time(pid, clock).unwrap_or(0);
    let left = |timer: &IntervalTimer, now: u64, armed: bool| Timer {
        interval: timer.interval,
        // At least a microsecond: 0 means not armed.
        left: if armed { timer.expires.saturating_sub(now).max(1000) } else { 0 },
    };
    let own = clock::own_offsets().map_or(0, |o| o.0);
    let host = clock::now(libc::CLOCK_MONOTONIC).unwrap_or(0) - own;
    [
        left(&row.real, host as u64, row.real_armed != 0),
        left(&row.virt, cpu(Cpu::Virtual), row.virt.expires != 0),
        left(&row.prof, cpu(Cpu::Profiling), row.prof.expires != 0),
    ]
}

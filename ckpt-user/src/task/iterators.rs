//! The hidden state of tasks by BPF iterators: read in the freeze, with nothing run in the program.
//!
//! Loaded once a supervisor, before its first checkpoint and never before a restarted program runs. A kernel that
//! refuses a part costs one warning and the fallback (injected system calls).

use super::barriers;
use super::clock::{self, Cpu};
use super::control::Known;
use super::hidden::{ProcessState, ThreadState, altstack};
use super::keyring;
use super::learnt::Learnt;
use super::posix_timers::{Overrun, Overruns};
use super::timers::Timer;
use crate::freeze::rewind::{Wait, Waits};
use crate::freeze::tree;
use crate::memory::flags::{Names, Word};
use crate::memory::policy;
use crate::memory::protection_keys::Keys;
use crate::memory::vdso;
use crate::memory::vma::{self, Raw};
use crate::sys::bpf::{
    self, Attached, Bpf, BpfError, Fallback, FileRow, IntervalTimer, LifecycleKind, Options, PidTable,
    ProcessRow, Program, RestartDecoder, TaskRow, TimerRow, VmaRow, WaitDecoder, WaitRow, WriteFault,
    own_pid_namespace,
};
use crate::sys::specimens::Specimens;
use crate::task::proc::{ProcDir, reached_by};
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the iterators found, by the ids that we see.
#[derive(Debug, Default)]
pub struct Hidden {
    pub threads: HashMap<Pid, ThreadState>,
    pub processes: HashMap<Pid, ProcessState>,
    /// As smaps shows them.
    pub mappings: HashMap<Pid, Vec<Raw>>,
    /// How many processes smaps was read of, since a flag of theirs had no name yet.
    pub unnamed: u64,
    /// Of each process's own table, in order of their numbers.
    pub descriptors: HashMap<Pid, Vec<FileRow>>,
    /// Our own keyrings.
    pub own_keyrings: keyring::Known,
}

/// Lifecycle events since the last look, and what was lost in all. They are hints: the freeze reads the tree
/// itself, so a lost one costs nothing but the count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lifecycle {
    pub forks: u64,
    pub execs: u64,
    pub exits: u64,
    pub lost: u64,
}

/// The programs of one supervisor, used from the thread that makes checkpoints and from the tracer's. What cannot be
/// read is left out; why is said once the program runs again.
#[derive(Clone, Default)]
pub struct Kernel(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tried: bool,
    iterators: Option<Iterators>,
    error: Option<BpfError>,
}

impl Kernel {
    /// One that does without.
    pub fn none() -> Self {
        Self(Arc::new(Mutex::new(State { tried: true, ..State::default() })))
    }

    /// Loads the programs unless that was tried before.
    pub fn load(&self, options: Options) {
        let mut state = self.state();
        if state.tried {
            return;
        }
        state.tried = true;
        match Iterators::load(options) {
            Ok(iterators) => state.iterators = Some(iterators),
            Err(e) => log::warn!("system calls are injected for what eBPF would read: {e}"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T: Default>(&self, question: impl FnOnce(&mut Iterators) -> Result<T, BpfError>) -> T {
        let state = &mut *self.state();
        let Some(iterators) = &mut state.iterators else { return T::default() };
        question(iterators).unwrap_or_else(|error| {
            state.error = Some(error);
            T::default()
        })
    }

    /// How long threads of the tree below `root` still wait.
    pub fn waits(&self, root: Pid) -> Waits {
        let pids: Vec<Pid> = tree::members(root).into_iter().map(|m| m.0).collect();
        self.ask(|iterators| iterators.waits(&pids))
    }

    /// What can be read of stopped processes.
    pub fn read(&self, pids: &[Pid]) -> Hidden {
        let hidden = self.ask(|iterators| iterators.read(pids));
        let (mappings, unnamed) = self.ask(|iterators| iterators.mappings(pids));
        let descriptors = self.ask(|iterators| iterators.descriptors(pids));
        Hidden { mappings, unnamed, descriptors, ..hidden }
    }

    /// How often the POSIX timers of stopped processes have rung, those that have done so more often than their signals were
    /// taken: by process and id. As of now: to be asked when nobody else asks for their times any more.
    pub fn overruns(&self, pids: &[Pid]) -> Overruns {
        self.ask(|iterators| iterators.overruns(pids))
    }

    /// Reports write faults of these processes, until what is returned is dropped; `None` without BPF.
    ///
    /// # Errors
    /// The kernel has refused the program, or a process has gone.
    pub fn attach_faults(&self, pids: &[Pid]) -> Result<Option<Attached>, BpfError> {
        let Some(iterators) = &mut self.state().iterators else { return Ok(None) };
        iterators.track_also(pids)?;
        iterators.bpf.attach_faults().map(Some)
    }

    /// The write faults since the last call, and how many were lost since the programs were loaded.
    pub fn write_faults(&self) -> (Vec<WriteFault>, u64) {
        let bpf = &mut self.state().iterators;
        bpf.as_mut().map_or_else(Default::default, |i| (i.bpf.write_faults(), i.bpf.lost().faults))
    }

    /// What was reported since the last call; none without BPF.
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        let mut state = self.state();
        if let Some(error) = state.error.take() {
            log::info!("what eBPF did not read was found another way: {error}");
        }
        state.iterators.as_mut().map(Iterators::lifecycle)
    }
}

struct Iterators {
    bpf: Bpf,
    decoder: Option<RestartDecoder>,
    waits: Option<WaitDecoder>,
    names: Names,
    learnt: Learnt,
    /// Detached when dropped.
    _attached: Option<Attached>,
    namespace: u32,
}

impl Iterators {
    /// Loads what the kernel takes, and says what is done without the rest.
    ///
    /// # Errors
    /// The iterators of hidden state are not to be had.
    fn load(options: Options) -> Result<Self, BpfError> {
        let mut bpf = bpf::Kernel::load_with(options)?;
        if let Some(missing) = bpf.fallbacks().iter().find(|f| {
            matches!(f.program, Program::Pids | Program::Tasks | Program::Processes | Program::SignalActions)
        }) {
            return Err(BpfError::NotLoaded {
                program: missing.program.name(),
                reason: missing.reason.clone(),
            });
        }
        say_what_is_done_without(bpf.fallbacks());
        let decoder = RestartDecoder::new(bpf.offsets())
            .map_err(|e| log::warn!("interrupted sleeps begin anew after a restart: {e}"))
            .ok();
        let waits = WaitDecoder::new(bpf.offsets()).ok().flatten().filter(|_| bpf.has(Program::Waits));
        if waits.is_none() && bpf.has(Program::Waits) {
            log::warn!("this kernel does not tell how long waits still go; interrupted ones begin anew");
        }
        let names = flag_names(&mut bpf).unwrap_or_else(|e| {
            log::warn!("the flags of mappings are learnt as they are met: {e}");
            Names::default()
        });
        let learnt = Learnt::new(&mut bpf)?;
        let attached = bpf
            .attach_lifecycle()
            .map_err(|e| log::warn!("forks, execs and exits are looked for, not reported: {e}"))
            .ok();
        Ok(Self { bpf, decoder, waits, names, learnt, _attached: attached, namespace: own_pid_namespace()? })
    }

    /// Takes in what was reported since the last call.
    fn lifecycle(&mut self) -> Lifecycle {
        self.bpf.flush_log();
        let events = self.bpf.lifecycle();
        let count = |kind| events.iter().filter(|e| e.what() == Some(kind)).count() as u64;
        let lost = self.bpf.lost();
        Lifecycle {
            forks: count(LifecycleKind::Fork),
            execs: count(LifecycleKind::Exec),
            exits: count(LifecycleKind::GroupExit),
            lost: lost.lifecycle + lost.children,
        }
    }

    /// Watches exactly these processes.
    ///
    /// # Errors
    /// One has gone, or the map is full.
    fn track(&mut self, pids: &[Pid]) -> Result<(), BpfError> {
        let wanted: Vec<u32> = pids.iter().map(|p| p.as_raw() as u32).collect();
        let known = self.bpf.tracked();
        for &(host, _) in known.iter().filter(|(_, own)| !wanted.contains(own)) {
            self.bpf.untrack(host)?;
        }
        self.track_also(pids)
    }

    /// Watches these processes, too.
    ///
    /// # Errors
    /// As [`Self::track`].
    fn track_also(&mut self, pids: &[Pid]) -> Result<(), BpfError> {
        let known = self.bpf.tracked();
        let wanted = pids.iter().map(|p| p.as_raw() as u32);
        let new: Vec<u32> = wanted.filter(|w| known.iter().all(|k| k.1 != *w)).collect();
        self.bpf.track_all_own(&new)
    }

    /// Reads the state of stopped processes.
    ///
    /// # Errors
    /// From the iterators; the caller then injects.
    fn read(&mut self, pids: &[Pid]) -> Result<Hidden, BpfError> {
        self.track(pids)?;
        let tasks = self.bpf.tasks()?;
        let table = PidTable::new(tasks.iter().map(|row| &row.ids), self.namespace);
        let own = |host: u32| table.own(host).map(|own| Pid::from_raw(own as i32));
        let threads =
            tasks.iter().filter_map(|row| Some((own(row.ids.pid)?, self.thread_state(row)))).collect();
        let actions: HashMap<u32, Vec<[u64; 4]>> = self
            .bpf
            .signal_actions()?
            .iter()
            .map(|row| {
                let words =
                    row.actions.iter().map(|a| [a.handler, a.flags & !KERNEL_FLAGS, a.restorer, a.mask]);
                (row.tgid, words.collect())
            })
            .collect();
        let mut processes = HashMap::new();
        for row in self.bpf.processes()? {
            let (Some(pid), Some(actions)) = (own(row.tgid), actions.get(&row.tgid)) else { continue };
            let state = ProcessState {
                actions: actions.clone(),
                brk: row.memory.brk,
                timers: timers(pid, &row),
                dumpable: row.memory_flags as u32 & MMF_DUMPABLE,
                subreaper: row.child_subreaper != 0,
                may_be_denied: self.learnt.memory_may_be_denied(row.memory_flags),
                locks_to_come: self.names.of(row.default_flags).map(|names| locks(&names)),
                protection_keys: Keys::read(row.key_map, row.execute_only_key),
                segments: row.segments != 0,
                barriers: barriers::from_state(row.barriers),
                futex_slots: (row.futex_chosen != 0).then(|| slots(row.futex_mask)),
            };
            processes.insert(pid, state);
        }
        let own_keyrings = keyring::Known::of(self.learnt.own_keyrings());
        Ok(Hidden { threads, processes, own_keyrings, ..Hidden::default() })
    }

    /// The mappings of stopped processes. Where a flag has no name yet, smaps is read, and has taught it from then on;
    /// how many of them it was read of is returned, too.
    ///
    /// # Errors
    /// From the iterator; the caller then reads smaps.
    fn mappings(&mut self, pids: &[Pid]) -> Result<(HashMap<Pid, Vec<Raw>>, u64), BpfError> {
        if !has_words(&self.bpf) {
            return Ok(Default::default());
        }
        self.track(pids)?;
        let mut rows: HashMap<u32, Vec<VmaRow>> = HashMap::new();
        for row in self.bpf.vmas()? {
            rows.entry(row.tgid).or_default().push(row);
        }
        let (mut all, mut unnamed) = (HashMap::new(), 0);
        for (host, own) in self.bpf.tracked() {
            let pid = Pid::from_raw(own as i32);
            let Some(rows) = rows.get(&host) else { continue };
            let words: Vec<Word> = rows.iter().map(word).collect();
            // One that cannot be read has ended: who reads it next says so.
            let via = reached_by(pid);
            let Ok(maps) = raws(via, "maps") else { continue };
            let mut known = if let Some(known) = self.names.give(maps, &words) {
                known
            } else if let Ok(shown) = raws(via, "smaps") {
                self.names.learn_from(&shown, &words);
                unnamed += 1;
                shown
            } else {
                continue;
            };
            policy::note(&mut known, rows);
            all.insert(pid, known);
        }
        Ok((all, unnamed))
    }

    /// The descriptors of stopped processes.
    ///
    /// # Errors
    /// From the iterator; the caller then reads /proc.
    fn descriptors(&mut self, pids: &[Pid]) -> Result<HashMap<Pid, Vec<FileRow>>, BpfError> {
        self.track(pids)?;
        let mut all: HashMap<u32, Vec<FileRow>> = HashMap::new();
        // The table of a thread that has its own is not the process's: that is its first thread's, or, where that one has ended,
        // the only one that there is.
        for row in self.bpf.files()? {
            let of_process = all.entry(row.tgid).or_default();
            match of_process.first().filter(|known| known.files != row.files) {
                Some(_) if row.tid != row.tgid => continue,
                Some(_) => of_process.clear(),
                None => {}
            }
            of_process.push(row);
        }
        let of = |(host, own): (u32, u32)| (Pid::from_raw(own as i32), all.remove(&host).unwrap_or_default());
        Ok(self.bpf.tracked().into_iter().map(of).collect())
    }

    fn overruns(&mut self, pids: &[Pid]) -> Result<Overruns, BpfError> {
        if pids.is_empty() || !self.bpf.has(Program::Timers) {
            return Ok(Overruns::new());
        }
        self.track_also(pids)?;
        let own: HashMap<u32, u32> = self.bpf.tracked().into_iter().collect();
        let count = |rings: i64| u64::try_from(rings).unwrap_or(0);
        let timer = |row: &TimerRow| {
            let pid = Pid::from_raw(*own.get(&row.tgid)? as i32);
            let (waiting, taken, anew) = (count(row.waiting), count(row.taken), row.anew != 0);
            Some(((pid, row.id), Overrun { waiting, taken, anew }))
        };
        Ok(self.bpf.timers()?.iter().filter_map(timer).collect())
    }

    fn waits(&mut self, pids: &[Pid]) -> Result<Waits, BpfError> {
        let Some(decoder) = self.waits.clone() else { return Ok(Waits::new()) };
        self.track(pids)?;
        let rows = self.bpf.waits()?;
        if rows.is_empty() {
            return Ok(Waits::new());
        }
        let table = self.bpf.pids()?;
        let wait = |row: &WaitRow| {
            let tid = Pid::from_raw(table.own(row.tid)? as i32);
            let expires = decoder.expires(row)?;
            Some((tid, Wait { number: row.number, switches: row.switches, expires }))
        };
        Ok(rows.iter().filter_map(wait).collect())
    }

    fn thread_state(&self, row: &TaskRow) -> ThreadState {
        let signals = &row.signals;
        ThreadState {
            altstack: altstack(signals.stack_base, signals.stack_flags as i32, signals.stack_size),
            clear_child_tid: row.user.clear_child_tid,
            control: Known {
                parent_death: row.ids.pdeath_signal,
                flags: row.ids.flags,
                securebits: row.settings.securebits,
            },
            may_be_denied: self.learnt.may_be_denied(row.settings.thread_flags),
            has_policy: row.settings.memory_policy != 0,
            keyrings: keyring::Known::of(&row.keyrings),
            lost: self.learnt.lost(row),
            filter: (row.settings.filter != 0).then_some(row.settings.filter),
            restart: self.decoder.as_ref().map(|d| d.decode(&row.restart)),
        }
    }
}

/// The flags of mlockall(2) that give each new mapping these flags.
fn locks(names: &[String]) -> u32 {
    let given = |name: &str, flag: i32| if names.iter().any(|n| n == name) { flag } else { 0 };
    (given("lo", libc::MCL_FUTURE) | given("lf", libc::MCL_ONFAULT)) as u32
}

/// Whether the words of mappings are to be had, and whole.
/// A line for each consequence.
fn say_what_is_done_without(refused: &[Fallback]) {
    let mut lines: BTreeMap<&str, (Vec<&str>, &str)> = BTreeMap::new();
    for Fallback { program, reason } in refused {
        if let Some(instead) = without(*program) {
            lines.entry(instead).or_insert((Vec::new(), reason)).0.push(program.name());
        }
    }
    for (instead, (programs, reason)) in lines {
        log::warn!("{instead}: this kernel refuses eBPF {}: {reason}", programs.join(", "));
    }
}

/// What is done without a program, where nobody else says it; none of one without which no iterator is used.
fn without(program: Program) -> Option<&'static str> {
    Some(match program {
        Program::OnWriteFault | Program::OnKernelWriteFault => {
            "write faults are not reported, rounds go by what the last one found"
        }
        Program::Waits => "waits that only the kernel knows the end of begin anew after each checkpoint",
        Program::Timers => "how often POSIX timers have rung is not saved",
        Program::Vmas => "/proc/PID/smaps is read of each process while it stands still",
        Program::Descriptors => "descriptors are read from /proc",
        _ => return None,
    })
}

fn has_words(bpf: &Bpf) -> bool {
    let bytes = bpf.offsets().get("vma.flags").unwrap_or(0);
    bpf.has(Program::Vmas) && bytes as usize <= size_of::<u64>()
}

/// What the flags of mappings are called, as far as our own can tell.
fn flag_names(bpf: &mut Bpf) -> Result<Names, BpfError> {
    let mut names = Names::default();
    if has_words(bpf) {
        let failed = |source| BpfError::Proc { path: "/proc/self/smaps", source };
        let specimens = Specimens::new().map_err(failed)?;
        let own = Pid::this();
        let host = bpf.track_own(own.as_raw() as u32)?;
        let words: Vec<Word> = bpf.vmas()?.iter().filter(|row| row.tgid == host).map(word).collect();
        let mut raws = raws(own, "smaps").map_err(failed)?;
        let ours = specimens.range();
        // What is not among these may have changed in between.
        raws.retain(|r| vdso::kind(&r.name).is_some() || (ours.start <= r.start && r.end <= ours.end));
        names.learn_from(&raws, &words);
        bpf.untrack(host)?;
    }
    Ok(names)
}

fn word(row: &VmaRow) -> Word {
    Word { start: row.start, end: row.end, flags: row.flags }
}

/// The mappings in the file `name`, without the one that lies beyond user addresses.
fn raws(pid: Pid, name: &str) -> io::Result<Vec<Raw>> {
    let mut raws = vma::parse(&ProcDir::process(pid).text(name)?)?;
    raws.retain(|raw| raw.name != "[vsyscall]");
    Ok(raws)
}

/// One that has no hash of its own has none to mask with.
fn slots(mask: u32) -> u32 {
    if mask == 0 { 0 } else { mask.wrapping_add(1) }
}

/// `MMF_DUMPABLE_MASK`.
const MMF_DUMPABLE: u32 = 3;

/// SA_IMMUTABLE, SA_X32_ABI, SA_IA32_ABI: the kernel's own (arch/x86/include/asm/signal.h), never shown.
const KERNEL_FLAGS: u64 = 0x0380_0000;

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

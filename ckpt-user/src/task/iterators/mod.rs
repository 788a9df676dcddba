//! The hidden state of tasks by BPF iterators: read in the freeze, with nothing run in the program.
//!
//! ```text
//! Question ─▶ programs: our own, or a daemon's core ─▶ rows ─▶ decode (by what lessons have taught) ─▶ Hidden
//! ```
//! Loaded once a supervisor, before its first checkpoint and never before a restarted program runs. A kernel that
//! refuses a part costs one warning and the fallback (injected system calls).

mod decode;
pub mod lessons;
pub mod programs;
pub mod rows;

use super::hidden::{ProcessState, ThreadState};
use super::keyring;
use super::posix_timers::Overruns;
use crate::daemon::told::{self, Told};
use crate::freeze::rewind::Waits;
use crate::freeze::{seen, tree};
use crate::memory::vma::Raw;
use crate::sys::bpf::{Attached, BpfError, FileRow, LifecycleKind, Options, WriteFault, own_pid_namespace};
use decode::Answer;
use lessons::Lessons;
use nix::unistd::Pid;
use programs::Programs;
use rows::{Question, Rows};
use std::collections::HashMap;
use std::io::ErrorKind;
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
    /// Whose programs: the core's of this worker, or our own.
    by_core: bool,
    tried: bool,
    iterators: Option<Iterators>,
    /// Until the next checkpoint: the core was late once, which a program stands still for.
    is_let_be: bool,
    /// How often the core was late.
    late: u32,
    error: Option<BpfError>,
    /// Waits that were seen to go on, without iterators.
    seen: Waits,
}

/// A core that is late so often is not asked again.
const MOST_LATE: u32 = 3;

impl Kernel {
    /// One that does without.
    pub fn none() -> Self {
        Self(Arc::new(Mutex::new(State { tried: true, ..State::default() })))
    }

    /// For a worker: its core has the programs.
    pub fn of_core() -> Self {
        Self(Arc::new(Mutex::new(State { by_core: true, ..State::default() })))
    }

    /// Whether it can tell of processes that this one does not trace.
    pub fn tells_of_all(&self) -> bool {
        !self.state().by_core
    }

    /// Whether anything is to be asked of it.
    pub fn has_iterators(&self) -> bool {
        self.state().iterators.is_some()
    }

    /// Loads the programs unless that was tried before; at the beginning of each checkpoint.
    pub fn load(&self, options: Options) {
        let mut state = self.state();
        state.is_let_be = false;
        if state.by_core && state.iterators.is_none() {
            told::ask_for_another();
            if told::is_another() {
                log::info!("a daemon tells again what eBPF reads");
                (state.tried, state.late) = (false, 0);
            }
        }
        if state.tried {
            return;
        }
        state.tried = true;
        let loaded = if state.by_core { Iterators::of_core() } else { Iterators::load(options) };
        match loaded {
            Ok(iterators) => state.iterators = Some(iterators),
            // An administrator's to know: the daemon's log has it.
            Err(e) if state.by_core => {
                log::info!("{INJECTED}: {e}");
                state.was_refused(&e);
                state.tried = state.late == MOST_LATE || !is_late(&e);
            }
            Err(e) => log::warn!("{INJECTED}: {e}"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T: Default>(&self, question: impl FnOnce(&mut Iterators) -> Result<T, BpfError>) -> T {
        let state = &mut *self.state();
        let Some(iterators) = state.iterators.as_mut().filter(|_| !state.is_let_be) else {
            return T::default();
        };
        question(iterators).unwrap_or_else(|error| {
            state.was_refused(&error);
            state.error = Some(error);
            T::default()
        })
    }

    /// How long threads of the tree below `root` still wait; without iterators, those that [`Self::look_at_waits`] has seen.
    pub fn waits(&self, root: Pid) -> Waits {
        let pids: Vec<Pid> = tree::members(root).into_iter().map(|m| m.0).collect();
        let told = self.ask(|iterators| Ok(iterators.ask(&pids, Question::Waits)?.waits()));
        let state = self.state();
        if state.iterators.is_none() { state.seen.clone() } else { told }
    }

    /// Without iterators: looks which threads wait, and for how long at most. While they run, after each stop of theirs.
    pub fn look_at_waits(&self, root: Pid) {
        if self.has_iterators() {
            return;
        }
        let now = seen::look(root);
        let mut state = self.state();
        state.seen = seen::known(&state.seen, now);
    }

    /// What can be read of stopped processes.
    pub fn read(&self, pids: &[Pid]) -> Hidden {
        let (threads, processes) = self.ask(|iterators| Ok(iterators.ask(pids, Question::State)?.state()));
        let (mappings, unnamed) =
            self.ask(|iterators| Ok(iterators.ask(pids, Question::Mappings)?.mappings()));
        let descriptors = self.ask(|iterators| Ok(iterators.ask(pids, Question::Descriptors)?.descriptors()));
        let own_keyrings = self.ask(|iterators| Ok(iterators.own_keyrings()));
        Hidden { threads, processes, mappings, unnamed, descriptors, own_keyrings }
    }

    /// How often the POSIX timers of stopped processes have rung, those that have done so more often than their signals were
    /// taken: by process and id. As of now: to be asked when nobody else asks for their times any more.
    pub fn overruns(&self, pids: &[Pid]) -> Overruns {
        if pids.is_empty() {
            return Overruns::new();
        }
        self.ask(|iterators| Ok(iterators.ask(pids, Question::Overruns)?.overruns()))
    }

    /// Reports write faults of these processes, until what is returned is dropped; `None` without BPF of our own.
    ///
    /// # Errors
    /// The kernel has refused the program, or a process has gone.
    pub fn attach_faults(&self, pids: &[Pid]) -> Result<Option<Attached>, BpfError> {
        let mut state = self.state();
        let Some(programs) = state.own_programs() else { return Ok(None) };
        programs.track_also(pids)?;
        programs.bpf.attach_faults().map(Some)
    }

    /// The write faults since the last call, and how many were lost since the programs were loaded.
    pub fn write_faults(&self) -> (Vec<WriteFault>, u64) {
        let mut state = self.state();
        state.own_programs().map_or_else(Default::default, |p| (p.bpf.write_faults(), p.bpf.lost().faults))
    }

    /// What was reported since the last call; none without BPF of our own.
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        let mut state = self.state();
        match state.error.take() {
            Some(error @ BpfError::Daemon(_)) if state.iterators.is_none() => {
                log::warn!("{INJECTED} from here on: {error}");
            }
            Some(error @ BpfError::Daemon(_)) => log::info!("{INJECTED} in this checkpoint: {error}"),
            Some(error) => log::info!("what eBPF did not read was found another way: {error}"),
            None => {}
        }
        state.own_programs().map(lifecycle)
    }
}

const INJECTED: &str = "system calls are injected for what eBPF would read";

/// Whether the core was late, and may be asked another time.
fn is_late(error: &BpfError) -> bool {
    matches!(error, BpfError::Daemon(source) if source.kind() == ErrorKind::TimedOut)
}

impl State {
    /// A core that is gone, or late too often, is not asked again; one that is late, not before the next checkpoint.
    fn was_refused(&mut self, error: &BpfError) {
        if !matches!(error, BpfError::Daemon(_)) {
            return;
        }
        self.is_let_be = true;
        self.late += 1;
        if self.late == MOST_LATE || !is_late(error) {
            self.iterators = None;
        }
    }

    fn own_programs(&mut self) -> Option<&mut Programs> {
        match &mut self.iterators.as_mut()?.source {
            Source::Own { programs, .. } => Some(programs),
            Source::Core(_) => None,
        }
    }
}

/// Who answers.
enum Source {
    Own {
        programs: Box<Programs>,
        /// Detached when dropped.
        _attached: Option<Attached>,
    },
    Core(Told),
}

struct Iterators {
    source: Source,
    lessons: Lessons,
    namespace: u32,
}

impl Iterators {
    /// # Errors
    /// The iterators of hidden state are not to be had.
    fn load(options: Options) -> Result<Self, BpfError> {
        let (mut programs, lessons) = Programs::load(options)?;
        let _attached = programs.attach_lifecycle();
        let source = Source::Own { programs: Box::new(programs), _attached };
        Ok(Self { source, lessons, namespace: own_pid_namespace()? })
    }

    /// # Errors
    /// The core has no programs, or is gone.
    fn of_core() -> Result<Self, BpfError> {
        let told = Told::by_core().map_err(BpfError::Daemon)?;
        let lessons = told.lessons().map_err(BpfError::Daemon)?;
        Ok(Self { source: Source::Core(told), lessons, namespace: own_pid_namespace()? })
    }

    fn ask<'a>(&'a mut self, pids: &'a [Pid], question: Question) -> Result<Answer<'a>, BpfError> {
        let rows: Rows = match &mut self.source {
            Source::Own { programs, .. } => programs.ask(pids, question)?,
            Source::Core(told) => told.ask(pids, question)?,
        };
        Ok(Answer { rows, pids, lessons: &mut self.lessons, namespace: self.namespace })
    }

    /// Those that the program begins with.
    fn own_keyrings(&self) -> keyring::Known {
        match self.source {
            Source::Own { .. } => keyring::Known::of(self.lessons.learnt.own_keyrings()),
            Source::Core(_) => keyring::Known::own(),
        }
    }
}

/// Takes in what was reported since the last call.
fn lifecycle(programs: &mut Programs) -> Lifecycle {
    let bpf = &mut programs.bpf;
    bpf.flush_log();
    let events = bpf.lifecycle();
    let count = |kind| events.iter().filter(|e| e.what() == Some(kind)).count() as u64;
    let lost = bpf.lost();
    Lifecycle {
        forks: count(LifecycleKind::Fork),
        execs: count(LifecycleKind::Exec),
        exits: count(LifecycleKind::GroupExit),
        lost: lost.lifecycle + lost.children,
    }
}

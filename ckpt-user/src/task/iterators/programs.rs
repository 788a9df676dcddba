//! The programs as this process has loaded them, with what it takes to understand their rows.

use super::lessons::Lessons;
use super::rows::{Question, Rows, Thread, Waiting};
use crate::sys::bpf::{
    self, About, Attached, Bpf, BpfError, Fallback, Options, Program, RestartDecoder, TaskRow, WaitDecoder,
    WaitRow,
};
use nix::unistd::Pid;
use std::collections::BTreeMap;

/// Loaded programs: nothing is attached.
pub struct Programs {
    pub bpf: Bpf,
    restarts: Option<RestartDecoder>,
    waits: Option<WaitDecoder>,
}

impl Programs {
    /// Loads what the kernel takes, says what is done without the rest, and learns what this kernel's words mean.
    ///
    /// # Errors
    /// The iterators of hidden state are not to be had.
    pub fn load(options: Options) -> Result<(Self, Lessons), BpfError> {
        let mut bpf = bpf::Kernel::load_with(options)?;
        bpf.leave_out_long_walks();
        if let Some(missing) = bpf.fallbacks().iter().find(|f| {
            matches!(f.program, Program::Pids | Program::Tasks | Program::Processes | Program::SignalActions)
        }) {
            return Err(BpfError::NotLoaded {
                program: missing.program.name(),
                reason: missing.reason.clone(),
            });
        }
        say_what_is_done_without(bpf.fallbacks());
        let restarts = RestartDecoder::new(bpf.offsets())
            .map_err(|e| log::warn!("interrupted sleeps begin anew after a restart: {e}"))
            .ok();
        let waits = WaitDecoder::new(bpf.offsets()).ok().flatten().filter(|_| bpf.has(Program::Waits));
        if waits.is_none() && bpf.has(Program::Waits) {
            log::warn!("this kernel does not tell how long waits still go; interrupted ones begin anew");
        }
        let lessons = Lessons::learnt(&mut bpf)?;
        Ok((Self { bpf, restarts, waits }, lessons))
    }

    /// Begins to report forks, execs and exits, until what is returned is dropped.
    pub fn attach_lifecycle(&mut self) -> Option<Attached> {
        self.bpf
            .attach_lifecycle()
            .map_err(|e| log::warn!("forks, execs and exits are looked for, not reported: {e}"))
            .ok()
    }

    /// Watches these processes, too.
    ///
    /// # Errors
    /// One has gone, or the map is full.
    pub fn track_also(&mut self, pids: &[Pid]) -> Result<(), BpfError> {
        let known = self.bpf.tracked();
        let wanted = pids.iter().map(|p| p.as_raw() as u32);
        let new: Vec<u32> = wanted.filter(|w| known.iter().all(|k| k.1 != *w)).collect();
        self.bpf.track_all_own(&new)
    }

    /// Answers a question about these processes, which are watched from then on.
    ///
    /// # Errors
    /// One has gone, or cannot be read; the caller then does without.
    pub fn ask(&mut self, pids: &[Pid], question: Question) -> Result<Rows, BpfError> {
        // Those of whom timers are asked are some of those that are watched.
        if question != Question::Overruns {
            self.untrack_others(pids)?;
        }
        self.track_also(pids)?;
        let known = self.bpf.tracked();
        let host = |pid: &Pid| known.iter().find(|k| k.1 == pid.as_raw() as u32).map_or(0, |k| k.0);
        let rows = self.answer(&self.bpf.about_tracked(), question)?;
        Ok(Rows { hosts: pids.iter().map(host).collect(), ..rows })
    }

    fn untrack_others(&mut self, pids: &[Pid]) -> Result<(), BpfError> {
        let wanted: Vec<u32> = pids.iter().map(|p| p.as_raw() as u32).collect();
        for &(host, _) in self.bpf.tracked().iter().filter(|(_, own)| !wanted.contains(own)) {
            self.bpf.untrack(host)?;
        }
        Ok(())
    }

    /// Rows of some processes.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn answer(&self, about: &About<'_>, question: Question) -> Result<Rows, BpfError> {
        let mut rows = Rows::default();
        match question {
            Question::State => {
                rows.threads = self.threads(about)?;
                rows.actions = about.signal_actions()?;
                rows.processes = about.processes()?;
            }
            Question::Mappings if has_words(&self.bpf) => rows.mappings = about.vmas()?,
            Question::Descriptors => rows.descriptors = about.files()?,
            Question::Overruns if self.bpf.has(Program::Timers) => rows.timers = about.timers()?,
            Question::Waits if self.waits.is_some() => {
                let waiting = about.waits()?;
                rows.waiting = waiting.iter().filter_map(|row| self.waiting(row)).collect();
                // They say which thread is which. They run: what one of them has just left may be torn.
                if !rows.waiting.is_empty() {
                    rows.threads = self.threads(about).or_else(|_| self.threads(about))?;
                }
            }
            Question::Mappings | Question::Overruns | Question::Waits => {}
        }
        Ok(rows)
    }

    fn threads(&self, about: &About<'_>) -> Result<Vec<Thread>, BpfError> {
        let thread = |row: TaskRow| {
            let restart = self.restarts.as_ref().map(|decoder| decoder.decode(&row.restart));
            Thread { row, restart }
        };
        Ok(about.tasks()?.into_iter().map(thread).collect())
    }

    fn waiting(&self, row: &WaitRow) -> Option<Waiting> {
        let WaitRow { tid, tgid, number, switches, .. } = *row;
        // It is a word of a kernel stack: a time that is one, and not an address.
        let expires = self.waits.as_ref()?.expires(row).filter(|at| *at < LATEST)?;
        Some(Waiting { tid, tgid, number, switches, expires })
    }
}

/// No wait ends later, in nanoseconds since the machine was started: 300 years.
const LATEST: u64 = i64::MAX.cast_unsigned();

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

/// Whether the words of mappings are to be had, and whole.
pub fn has_words(bpf: &Bpf) -> bool {
    let bytes = bpf.offsets().get("vma.flags").unwrap_or(0);
    bpf.has(Program::Vmas) && bytes as usize <= size_of::<u64>()
}

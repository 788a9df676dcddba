//! Clocks of processes in time namespaces (time_namespaces(7)): the host's, moved by an offset each.

use super::proc::ProcDir;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::io;

const SECOND: i64 = 1_000_000_000;

/// `clock` now, nanoseconds, in our own time namespace.
pub fn now(clock: i32) -> Option<i64> {
    let now = clock_gettime(ClockId::from_raw(clock)).ok()?;
    Some(now.tv_sec() * SECOND + now.tv_nsec())
}

/// A clock of CPU time: CPUCLOCK_PROF, CPUCLOCK_VIRT, CPUCLOCK_SCHED of include/linux/posix-timers_types.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// In the program and in the kernel, counted by ticks.
    Profiling,
    /// In the program, counted by ticks.
    Virtual,
    /// CLOCK_PROCESS_CPUTIME_ID.
    Scheduled,
}

/// CPU time that the threads of a process have had, those that have ended too; nanoseconds.
pub fn cpu_time(pid: Pid, clock: Cpu) -> Option<u64> {
    // MAKE_PROCESS_CPUCLOCK of include/linux/posix-timers.h.
    now(!pid.as_raw() << 3 | clock as i32).map(i64::unsigned_abs)
}

/// How far a process's clocks are from the host's and from ours; monotonic and boottime, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shift {
    theirs: (i64, i64),
    ours: (i64, i64),
}

impl Shift {
    pub fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self { theirs: offsets(&ProcDir::process(pid))?, ours: own_offsets()? })
    }

    /// What to add to a host time to get the program's; none for clocks without an offset.
    pub fn from_host(self, clock: i32) -> Option<i64> {
        match clock {
            libc::CLOCK_MONOTONIC => Some(self.theirs.0),
            libc::CLOCK_BOOTTIME => Some(self.theirs.1),
            _ => None,
        }
    }

    /// The program's clock now; none for clocks without an offset.
    pub fn now(self, clock: i32) -> Option<i64> {
        let ours = if clock == libc::CLOCK_BOOTTIME { self.ours.1 } else { self.ours.0 };
        Some(now(clock)? - ours + self.from_host(clock)?)
    }
}

/// Offsets of this process's own time namespace.
pub fn own_offsets() -> io::Result<(i64, i64)> {
    offsets(&ProcDir::process(Pid::this()))
}

/// Offsets of monotonic and boottime in a process's time namespace. The file shows the namespace that children
/// will be born in; a process that changed only that is not ours.
fn offsets(dir: &ProcDir) -> io::Result<(i64, i64)> {
    let text = match dir.text("timens_offsets") {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(e) => return Err(e),
    };
    Ok(parse(&text))
}

/// What /proc/PID/timens_offsets says of monotonic and boottime, nanoseconds.
pub(crate) fn parse(text: &str) -> (i64, i64) {
    let line = |name: &str| {
        let words: Vec<i64> = text
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(|w| w.parse().ok())
            .collect();
        let word = |i: usize| words.get(i).copied().unwrap_or(0);
        word(0).saturating_mul(SECOND).saturating_add(word(1))
    };
    (line("monotonic"), line("boottime"))
}

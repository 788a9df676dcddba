//! What a person asked for, as plain data: the command line fills these in, the supervisor acts on them.

use crate::machine::{Baseline, TUNABLES};
use crate::track::backend::Backend;
use crate::track::reconcile::Lie;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How page blocks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// LZ4, or raw where that does not pay.
    #[default]
    Lz4,
    /// Raw.
    None,
}

/// What a restart does about files that changed since the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilesPolicy {
    /// Cut files that the job had open for writing back to their size then; what is cut is kept in `DIR/cut/`.
    #[default]
    Rollback,
    /// Leave them as they are.
    Keep,
    /// Compare only: any difference is an error.
    Check,
}

/// What a restart does where the program's monotonic clocks cannot go on where they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClocksPolicy {
    /// It is refused, unless they have only gone on since the checkpoint.
    #[default]
    GoOn,
    /// They may jump forward, as after a reboot or on another machine.
    Jump,
}

/// Options of everything that supervises a program. `None` means *not given*: what the job recorded, else the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobOptions {
    /// Time between checkpoints; `Some(0)` is *off, said anew*.
    pub interval: Option<Duration>,
    /// `-d`. The rest of the rule is [`super::directory::resolve`].
    pub dir: Option<PathBuf>,
    /// How many restartable generations stay.
    pub keep: Option<usize>,
    /// See [`ends_program`].
    pub exit_after_ckpt: bool,
    /// The signal that ckptbpf keeps for itself.
    pub ckpt_signal: Option<i32>,
    /// SIGTERM asks for a checkpoint that is also the end, as batch systems send it before they kill. Where there can be none, the
    /// program gets it.
    pub term_ends: bool,
    /// Storage of page blocks.
    pub compress: Option<Codec>,
    /// 0 warnings only, 1 a line a checkpoint, 2 phases and the eBPF programs' log.
    pub verbose: u8,
    /// Take over a directory whose last writer cannot be asked (another host): the person vouches for its end.
    pub take_over: bool,
    /// The job was started by a name of DMTCP's: its coordinator ([`super::coordinator::Name`]). It has a pointer
    /// ([`super::pointer`]).
    pub dmtcp: Option<String>,
    /// Test hook: do without eBPF.
    pub no_bpf: bool,
    /// Test hook: this way of finding dirty pages and no other.
    pub track: Option<Backend>,
    /// Test hook: size of each event ring in bytes.
    pub ring_bytes: Option<u32>,
    /// Test hook: a log of write faults that is wrong.
    pub fault_log: Option<Lie>,
}

/// Why a checkpoint is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was time.
    Interval,
    /// `--ckpt-signal`.
    Signal,
    /// `ckptbpf checkpoint`.
    Request {
        /// `--kill`.
        kill: bool,
    },
}

/// Whether a checkpoint is also the end of the program. `--exit-after-ckpt` is about the checkpoint that
/// `--ckpt-signal` takes, so that those of an interval may go before it; without such a signal, about the next one.
pub fn ends_program(cause: Cause, exit_after_ckpt: bool, ckpt_signal: Option<i32>) -> bool {
    match cause {
        Cause::Signal => exit_after_ckpt,
        Cause::Request { kill: true } => true,
        Cause::Interval | Cause::Request { kill: false } => exit_after_ckpt && ckpt_signal.is_none(),
    }
}

/// The signals that ckptbpf keeps for itself, as [`bit`]s.
pub fn kept_signals(ckpt_signal: Option<i32>, term_ends: bool) -> u64 {
    let term = term_ends.then_some(libc::SIGTERM);
    ckpt_signal.into_iter().chain(term).fold(0, |kept, signal| kept | bit(signal))
}

/// A signal in a set of them; none of what is no signal.
pub fn bit(signal: i32) -> u64 {
    let place = u32::try_from(signal).ok().and_then(|signal| signal.checked_sub(1));
    place.and_then(|place| 1_u64.checked_shl(place)).unwrap_or(0)
}

/// `ckptbpf launch`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// What every supervisor takes.
    pub job: JobOptions,
    /// Move what DIR holds to `DIR/old-N/` instead of refusing it.
    pub new: bool,
    /// `-u USER`.
    pub user: Option<String>,
    /// What the program is told of the processor, if less than there is.
    pub cpu_baseline: Option<Baseline>,
    /// Return once the program runs.
    pub detach: bool,
    /// The program and its arguments; never empty.
    pub program: Vec<OsString>,
}

impl LaunchOptions {
    /// Variables that tell the program of its processor.
    pub fn baseline_environment(&self) -> Vec<(OsString, OsString)> {
        let tunables = std::env::var_os(TUNABLES);
        self.cpu_baseline.map(|baseline| baseline.environment(tunables.as_deref())).unwrap_or_default()
    }
}

/// `ckptbpf restart`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartOptions {
    /// What every supervisor takes.
    pub job: JobOptions,
    /// Run before the memory has arrived.
    pub lazy: bool,
    /// Exactly this generation.
    pub at: Option<u64>,
    /// What to do about files that changed.
    pub files: FilesPolicy,
    /// What to do about clocks that cannot go on.
    pub clocks: ClocksPolicy,
    /// Return once the program runs.
    pub detach: bool,
    /// One line of JSON to standard error once the program runs.
    pub json: bool,
    /// A job directory or one generation's file.
    pub source: PathBuf,
    /// Test hook: hold the background fill of a lazy restart while this file exists.
    pub hold_fill: Option<PathBuf>,
    /// Test hook: take the image's vdso for that of another kernel.
    pub foreign_vdso: bool,
    /// Test hook: take the image's registers for those of a processor that saves them in other places.
    pub foreign_xsave: bool,
}

/// `ckptbpf slurm run`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlurmOptions {
    /// What every supervisor takes.
    pub job: JobOptions,
    /// As of a restart.
    pub lazy: bool,
    /// As of a restart.
    pub files: FilesPolicy,
    /// As of a restart.
    pub clocks: ClocksPolicy,
    /// As of a launch.
    pub cpu_baseline: Option<Baseline>,
    /// A directory, or another job by its number, to go on from where this one has no checkpoints.
    pub from: Option<OsString>,
    /// Whether the job is queued again once it was stopped with a checkpoint.
    pub requeue: bool,
    /// The program and its arguments; never empty.
    pub program: Vec<OsString>,
}

/// `ckptbpf attach`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// What every supervisor takes.
    pub job: JobOptions,
    /// The first process of the tree to supervise.
    pub pid: i32,
}

/// `ckptbpf checkpoint PID` of a process that nobody supervises: one full checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// `-d`.
    pub dir: Option<PathBuf>,
    /// The first process of the tree.
    pub pid: i32,
    /// The checkpoint is also the end.
    pub kill: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_may_go_before_the_signal_that_ends() {
        let request = |kill| Cause::Request { kill };
        let ends =
            [(Cause::Signal, true, Some(10)), (Cause::Interval, true, None), (request(true), false, None)];
        assert!(ends.iter().all(|&(cause, exit, signal)| ends_program(cause, exit, signal)));
        let stays = [
            (Cause::Signal, false, Some(10)),
            (Cause::Interval, true, Some(10)),
            (request(false), false, None),
        ];
        assert!(!stays.iter().any(|&(cause, exit, signal)| ends_program(cause, exit, signal)));
    }

    #[test]
    fn what_is_no_signal_is_kept_from_nobody() {
        assert_eq!(kept_signals(Some(10), true), 1 << 9 | 1 << 14);
        assert_eq!(kept_signals(Some(64), false), 1 << 63);
        for none in [0, 65, -1, i32::MIN, i32::MAX] {
            assert_eq!(kept_signals(Some(none), false), 0, "{none}");
        }
    }
}

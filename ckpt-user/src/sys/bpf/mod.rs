//! The eBPF programs: loading them, attaching what a job needs, and reading what they report.
//!
//! ```text
//! Kernel::load ─▶ Bpf ─ track(tgid) ─▶ attach_lifecycle() ─▶ lifecycle()        hints: what happened
//!                  │        └───────▶ attach_faults()    ─▶ write_faults()      hints: what was written
//!                  └─ tasks() processes() signal_actions() vmas() files()       the truth, at the time of the call
//! ```
//!
//! Invariants: a program that this kernel refuses, or whose fields it lacks, is a [`Fallback`], never an error of the
//! job; the others go on working. Nothing is attached unless a guard is held. Process ids here are *host* ids (those
//! of the initial pid namespace, which eBPF sees) unless they are called *own*; [`PidTable`] translates.
//!
//! Order: attach, then track, then look for children that were born before: so none is missed.

mod about;
mod btf;
mod cache;
mod events;
mod fields;
pub(crate) mod fuzz;
mod handle;
mod iterators;
mod loader;
mod pids;
mod programs;
mod restart;
mod waits;

use std::io;

pub use about::{About, Limits};
pub use btf::{BtfError, Layout};
pub use ckpt_common::{
    FileRow, IntervalTimer, Keyrings, LifecycleEvent, LifecycleKind, MemoryLayout, PidAtLevel, ProcessRow,
    RestartBlock, SharedObjects, SigAction, SigActionsRow, TOLD, TaskIds, TaskRow, TaskSignals, TimerRow,
    UserPointers, VmaRow, WaitRow, WriteFault,
};
pub use events::{Attached, Lost};
pub use fields::Offsets;
pub use handle::Bpf;
pub use iterators::of_bytes;
pub use loader::{Fallback, Kernel, Options, built_from};
pub use pids::{INITIAL_PID_NAMESPACE, PidTable, own_pid_namespace};
pub use programs::Program;
pub use restart::{Restart, RestartDecoder};
pub use waits::WaitDecoder;

/// Why eBPF, or a part of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// No program can be placed without the kernel's type information.
    #[error("cannot find out this kernel's structures: {0}")]
    Btf(#[from] BtfError),
    /// The object or one of its maps was refused.
    #[error(
        "the kernel refuses ckptbpf's eBPF object: {reason}; run `ckptbpf check` as root to see what is missing"
    )]
    Load {
        /// The whole chain of causes.
        reason: String,
    },
    /// The program is not there.
    #[error("eBPF program {program} is not loaded: {reason}")]
    NotLoaded {
        /// Which.
        program: &'static str,
        /// Why.
        reason: String,
    },
    /// Attaching was refused.
    #[error("cannot attach eBPF program {program}: {reason}; run `ckptbpf check`")]
    Attach {
        /// Which.
        program: &'static str,
        /// The chain of causes.
        reason: String,
    },
    /// Tracking more processes than the map has room for, or a map operation failed.
    #[error("cannot track process {tgid}: {reason}")]
    Track {
        /// Host process id.
        tgid: u32,
        /// The chain of causes.
        reason: String,
    },
    /// The process is not visible in our pid namespace.
    #[error("process {0} is not in this pid namespace (any more); is it still running?")]
    NoProcess(u32),
    /// Reading an iterator failed.
    #[error("reading eBPF iterator {program}: {source}")]
    Iterator {
        /// Which.
        program: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// Rows are cut short: some kernel memory could not be read.
    #[error("eBPF iterator {program} gave incomplete rows; use the fallback for this checkpoint")]
    Torn {
        /// Which.
        program: &'static str,
    },
    /// The daemon has the programs, and does not tell.
    #[error("the daemon does not tell what its eBPF programs read: {0}")]
    Daemon(io::Error),
    /// `/proc` does not show our pid namespace.
    #[error("cannot read {path}: {source}; is /proc mounted?")]
    Proc {
        /// What was read.
        path: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// Of pointers that the kernel has kept nobody knows what they point to.
    #[error("this kernel shows nobody where its functions are (kernel.kptr_restrict)")]
    Hidden,
}

/// An error with its causes in one line; of a verifier's log only the end, which is where it says why.
fn chain(error: &dyn std::error::Error) -> String {
    const KEEP: usize = 600;
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let skip = text.char_indices().rev().nth(KEEP).map_or(0, |(at, _)| at);
        let text = text[skip..].trim().trim_end_matches("Verifier output:").trim_end_matches(". ").to_owned();
        let text = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        if !parts.iter().any(|known| known.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

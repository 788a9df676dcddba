//! Records shared by both sides of the kernel boundary: events and iterator rows.
//!
//! Every record is `repr(C)`, little-endian as the machine is, without padding, and made only of integers, so that
//! user space can view the bytes the kernel wrote without `unsafe` (zerocopy) and the kernel side can hand over
//! whole structures. A field's *host* process id is the one of the initial pid namespace, which is what eBPF
//! sees; its *own* id is the one in the pid namespace of the process that loaded the programs (0: not visible there).
#![no_std]
#![forbid(unsafe_code)]

mod event;
mod rows;

pub use event::{LifecycleEvent, LifecycleKind, WriteFault};
pub use rows::{
    FileRow, IntervalTimer, KEYRING_NAME, Keyrings, MemoryLayout, PidAtLevel, ProcessRow, RestartBlock,
    SECURITY, SIGNALS, SharedObjects, SigAction, SigActionsRow, TIMED_WAITS, TOLD, TaskIds, TaskRow,
    TaskSettings, TaskSignals, TimerRow, UserPointers, VmaRow, WAIT_STACK, WaitRow,
};

/// Deepest pid namespace whose numbers a row carries; a task nested deeper shows the outermost ones.
pub const PID_LEVELS: usize = 4;

/// The value of an offset global whose field this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Indices of the per-CPU counters in the map `LOST`.
pub mod lost {
    /// Lifecycle events that found the ring full.
    pub const LIFECYCLE: u32 = 0;
    /// Write faults that found the ring full.
    pub const FAULTS: u32 = 1;
    /// Children that could not be tracked because the map of tracked processes was full.
    pub const CHILDREN: u32 = 2;
    /// Kernel memory that could not be read: a row is missing or cut short.
    pub const READS: u32 = 3;
    /// How many counters there are.
    pub const COUNT: u32 = 4;
}

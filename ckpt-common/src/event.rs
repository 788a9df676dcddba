//! What the event programs put into the ring buffers.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What happened to a tracked process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LifecycleKind {
    /// It made a new process (not a thread), which is tracked from here on.
    Fork = 1,
    /// It runs a new program: its memory is another one.
    Exec = 2,
    /// Its last thread exits. A leader that exits while other threads run is no event.
    GroupExit = 3,
}

impl LifecycleKind {
    /// The kind that a record's number stands for.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Fork),
            2 => Some(Self::Exec),
            3 => Some(Self::GroupExit),
            _ => None,
        }
    }
}

/// A fork, exec or group exit of a tracked process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LifecycleEvent {
    /// A [`LifecycleKind`].
    pub kind: u32,
    /// Host process id.
    pub tgid: u32,
    /// Host thread id of the thread that did it.
    pub tid: u32,
    /// The process id in the loader's pid namespace.
    pub own_tgid: u32,
    /// Fork: host process id of the child, else 0.
    pub child_tgid: u32,
    /// Fork: the child's process id in the loader's pid namespace, else 0.
    pub own_child_tgid: u32,
    /// `CLOCK_MONOTONIC` of the host, nanoseconds.
    pub time: u64,
}

impl LifecycleEvent {
    /// What happened; `None` for a number that this version does not know.
    #[must_use]
    pub const fn what(&self) -> Option<LifecycleKind> {
        LifecycleKind::from_raw(self.kind)
    }
}

/// A page that a tracked process wrote to and the kernel had to fault in or unprotect: a hint, never the truth,
/// since stores by `get_user_pages` (O_DIRECT, `process_vm_writev`) do not show here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteFault {
    /// Host process id.
    pub tgid: u32,
    /// The process id in the loader's pid namespace.
    pub own_tgid: u32,
    /// Address of the 4 KiB page.
    pub page: u64,
}

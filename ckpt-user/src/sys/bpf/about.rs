//! What the iterators tell of some processes.
use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ckpt_common::{FileRow, ProcessRow, SigActionsRow, TaskRow, TimerRow, VmaRow, WaitRow, lost};
use zerocopy::FromBytes;

use super::{Bpf, BpfError, Program};

/// What an answer may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes; `None`: as many as there are.
    pub room: Option<usize>,
    /// For all questions together, from when they can be asked on; `None`: as long as it takes.
    pub time: Option<Duration>,
}

/// Some processes. Each question is an iterator's, and fails where that is not loaded, cannot be read, or says more than may be
/// said.
#[must_use]
pub struct About<'a> {
    bpf: &'a Bpf,
    processes: Vec<u32>,
    /// As of [`Limits`].
    room: Option<usize>,
    until: Option<Instant>,
}

impl<'a> About<'a> {
    pub(super) fn new(bpf: &'a Bpf, processes: Vec<u32>, limits: Limits) -> Self {
        let Limits { room, time } = limits;
        Self { bpf, processes, room, until: time.map(|time| Instant::now() + time) }
    }

    /// Every thread.
    ///
    /// # Errors
    /// As of [`About`], here and in what follows.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, BpfError> {
        self.rows(Program::Tasks)
    }

    /// One row each.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn processes(&self) -> Result<Vec<ProcessRow>, BpfError> {
        let mut rows: Vec<ProcessRow> = self.rows(Program::Processes)?;
        // When the leader has exited the others are reported too: take one that still has the memory.
        rows.sort_by_key(|row| (row.tgid, row.mm == 0, row.tid));
        rows.dedup_by_key(|row| row.tgid);
        Ok(rows)
    }

    /// The signal actions, one row each.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn signal_actions(&self) -> Result<Vec<SigActionsRow>, BpfError> {
        self.rows(Program::SignalActions)
    }

    /// The threads that wait in one of [`ckpt_common::TIMED_WAITS`].
    ///
    /// # Errors
    /// As of [`About`].
    pub fn waits(&self) -> Result<Vec<WaitRow>, BpfError> {
        self.rows(Program::Waits)
    }

    /// The POSIX timers, the newest 256 of each.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn timers(&self) -> Result<Vec<TimerRow>, BpfError> {
        self.rows(Program::Timers)
    }

    /// The mappings, by process and address.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn vmas(&self) -> Result<Vec<VmaRow>, BpfError> {
        let mut rows: Vec<VmaRow> = self.rows(Program::Vmas)?;
        // A thread with descriptors of its own is walked like a process: the same mappings again.
        rows.sort_by_key(|row| (row.tgid, row.start, row.tid));
        rows.dedup_by_key(|row| (row.tgid, row.start));
        Ok(rows)
    }

    /// The open descriptors, by process, table and number.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn files(&self) -> Result<Vec<FileRow>, BpfError> {
        let mut rows: Vec<FileRow> = self.rows(Program::Descriptors)?;
        rows.sort_by_key(|row| (row.tgid, row.files, row.fd, row.tid));
        rows.dedup_by_key(|row| (row.tgid, row.files, row.fd));
        Ok(rows)
    }

    /// Rows process by process, or, where the kernel cannot do that, in one walk over all of the node, of whoever is tracked.
    fn rows<T: FromBytes>(&self, program: Program) -> Result<Vec<T>, BpfError> {
        let bpf = self.bpf;
        let before = bpf.counted(lost::READS);
        let left = |used: usize| Limits {
            room: self.room.map(|room| room.saturating_sub(used)),
            time: self.until.map(|until| until.saturating_duration_since(Instant::now())),
        };
        let mut all = Vec::new();
        if bpf.is_restrictable() {
            for &own in &self.processes {
                match bpf.walk(program, Some(own), &left(all.len() * size_of::<T>())) {
                    Ok(rows) => all.extend(rows),
                    Err(BpfError::Iterator { source, .. }) if not_restrictable(&source) => {
                        bpf.restrictable.store(false, Ordering::Relaxed);
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        if !bpf.is_restrictable() {
            all = bpf.walk(program, None, &left(0))?;
        }
        if bpf.counted(lost::READS) == before {
            Ok(all)
        } else {
            Err(BpfError::Torn { program: program.name() })
        }
    }
}

pub(super) fn not_restrictable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP))
}

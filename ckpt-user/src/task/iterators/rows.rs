//! What the iterators are asked, and the rows of an answer; as bytes, too, between a daemon's core and its workers.

use crate::sys::bpf::{self, FileRow, ProcessRow, Restart, SigActionsRow, TaskRow, TimerRow, VmaRow};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What about some processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Question {
    /// Their threads, what processes keep to themselves, and signal actions.
    State = 1,
    Mappings = 2,
    Descriptors = 3,
    /// How often POSIX timers have rung.
    Overruns = 4,
    /// How long their threads still wait.
    Waits = 5,
}

impl Question {
    /// The one with this number.
    pub fn of(number: u32) -> Option<Self> {
        [Self::State, Self::Mappings, Self::Descriptors, Self::Overruns, Self::Waits]
            .into_iter()
            .find(|one| *one as u32 == number)
    }
}

/// A thread, and what its interrupted system call would go on with: known where this kernel's functions are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    pub row: TaskRow,
    pub restart: Option<Restart>,
}

/// A thread that waits in one of [`ckpt_common::TIMED_WAITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Waiting {
    /// Host thread id.
    pub tid: u32,
    /// Host process id.
    pub tgid: u32,
    /// The system call.
    pub number: u64,
    /// As [`bpf::WaitRow::switches`].
    pub switches: u64,
    /// When its wait ends on the host's CLOCK_MONOTONIC, nanoseconds.
    pub expires: u64,
}

/// An answer: what the question was not about is empty.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rows {
    /// What the host calls the processes, in the order in which they were asked about.
    pub hosts: Vec<u32>,
    pub threads: Vec<Thread>,
    pub processes: Vec<ProcessRow>,
    pub actions: Vec<SigActionsRow>,
    pub mappings: Vec<VmaRow>,
    pub descriptors: Vec<FileRow>,
    pub timers: Vec<TimerRow>,
    pub waiting: Vec<Waiting>,
}

impl Rows {
    /// For another process of the same ckptbpf on the same machine. What a thread would go on with is told by what it is
    /// ([`Restart::to_block`]), and not by where the kernel's functions are.
    pub fn to_bytes(&self) -> Vec<u8> {
        let told = |thread: &Thread| {
            let restart = thread.restart.as_ref().map(Restart::to_block);
            TaskRow { restart: restart.unwrap_or(NOT_KNOWN), ..thread.row }
        };
        let threads: Vec<TaskRow> = self.threads.iter().map(told).collect();
        let mut bytes = Vec::new();
        put(&mut bytes, &self.hosts);
        put(&mut bytes, &threads);
        put(&mut bytes, &self.processes);
        put(&mut bytes, &self.actions);
        put(&mut bytes, &self.mappings);
        put(&mut bytes, &self.descriptors);
        put(&mut bytes, &self.timers);
        put(&mut bytes, &self.waiting);
        bytes
    }

    /// None where that is not what [`Self::to_bytes`] makes.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let hosts = take(from)?;
        let threads = take::<TaskRow>(from)?.into_iter();
        let restart = |row: &TaskRow| {
            if row.restart == NOT_KNOWN { Some(None) } else { Restart::of_block(&row.restart).map(Some) }
        };
        let threads: Option<Vec<Thread>> =
            threads.map(|row| Some(Thread { row, restart: restart(&row)? })).collect();
        let rows = Self {
            hosts,
            threads: threads?,
            processes: take(from)?,
            actions: take(from)?,
            mappings: take(from)?,
            descriptors: take(from)?,
            timers: take(from)?,
            waiting: take(from)?,
        };
        from.is_empty().then_some(rows)
    }

    /// Takes in the answer to the same question about others.
    pub fn append(&mut self, mut more: Self) {
        self.hosts.append(&mut more.hosts);
        self.threads.append(&mut more.threads);
        self.processes.append(&mut more.processes);
        self.actions.append(&mut more.actions);
        self.mappings.append(&mut more.mappings);
        self.descriptors.append(&mut more.descriptors);
        self.timers.append(&mut more.timers);
        self.waiting.append(&mut more.waiting);
    }
}

const NOT_KNOWN: bpf::RestartBlock = bpf::RestartBlock { function: 0, data: [0; 40] };

/// How many rows, and the rows.
fn put<T: IntoBytes + Immutable>(to: &mut Vec<u8>, rows: &[T]) {
    to.extend((rows.len() as u64).to_ne_bytes());
    to.extend(rows.as_bytes());
}

fn take<T: FromBytes>(from: &mut &[u8]) -> Option<Vec<T>> {
    let (count, rest) = from.split_first_chunk()?;
    let length = usize::try_from(u64::from_ne_bytes(*count)).ok()?.checked_mul(size_of::<T>())?;
    let (rows, rest) = rest.split_at_checked(length)?;
    *from = rest;
    bpf::of_bytes(rows).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn rows() -> Rows {
        let known = Restart::Poll { descriptors: 1, count: 2, expires: Some(3) };
        let thread = |restart: Option<Restart>| {
            let block = restart.as_ref().map_or(NOT_KNOWN, Restart::to_block);
            Thread { row: TaskRow { restart: block, ..TaskRow::new_zeroed() }, restart }
        };
        Rows {
            hosts: vec![7, 8],
            threads: vec![thread(Some(known)), thread(None)],
            mappings: vec![VmaRow::new_zeroed(); 3],
            waiting: vec![Waiting { tid: 1, tgid: 2, number: 3, switches: 4, expires: 5 }],
            ..Rows::default()
        }
    }

    #[test]
    fn answers_arrive_as_they_were_given_and_half_ones_are_none() {
        let bytes = rows().to_bytes();
        assert_eq!(Rows::parse(&bytes), Some(rows()));
        for length in 0..bytes.len() {
            assert_eq!(Rows::parse(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(Rows::parse(&[&bytes[..], &[0]].concat()), None);
        let mut twice = rows();
        twice.append(rows());
        assert_eq!((twice.hosts.len(), twice.threads.len(), twice.mappings.len()), (4, 4, 6));
    }

    #[test]
    fn a_count_beyond_all_bytes_is_refused() {
        assert_eq!(Rows::parse(&u64::MAX.to_ne_bytes()), None);
        assert_eq!(Question::of(0), None);
        assert_eq!(Question::of(5), Some(Question::Waits));
    }
}

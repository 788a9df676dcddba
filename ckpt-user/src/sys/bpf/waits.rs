//! When a wait ends: the `struct hrtimer_sleeper` on the kernel stack of the thread that waits.
//!
//! epoll_wait(2) and its like keep their end nowhere else, and forget it when a stop interrupts them. A sleeper is
//! recognised by what it holds: the function that wakes, the thread itself, and a timer that is queued. What earlier
//! calls have left on the stack is not queued: the kernel takes a timer off its queue before its frame is given back.
use std::{fs::File, io::BufReader};

use ckpt_common::WaitRow;

use super::{
    BpfError, Offsets,
    restart::{KALLSYMS, functions},
};

const WAKER: &str = "hrtimer_wakeup";

/// Finds the timers of the running kernel.
#[derive(Clone, Debug)]
pub struct WaitDecoder {
    waker: u64,
    size: usize,
    expires: usize,
    function: usize,
    state: usize,
    task: usize,
}

impl WaitDecoder {
    /// Reads where things are; `None` when this kernel does not tell.
    ///
    /// # Errors
    /// `/proc/kallsyms` cannot be read.
    pub fn new(offsets: &Offsets) -> Result<Option<Self>, BpfError> {
        let proc = |source| BpfError::Proc { path: KALLSYMS, source };
        let symbols = File::open(KALLSYMS).map(BufReader::new).map_err(proc)?;
        let found = functions(symbols, &[(WAKER, ())]).map_err(proc)?;
        let place = |name| offsets.get(name).and_then(|at| usize::try_from(at).ok());
        let decoder = || {
            Some(Self {
                waker: found.first()?.0,
                size: place("sleeper")?,
                expires: place("sleeper.expires")?,
                function: place("sleeper.function")?,
                state: place("sleeper.state")?,
                task: place("sleeper.task")?,
            })
        };
        Ok(decoder())
    }

    /// When the wait ends on the host's CLOCK_MONOTONIC, nanoseconds; `None`: never, or not to be told for certain.
    #[must_use]
    pub fn expires(&self, row: &WaitRow) -> Option<u64> {
        const WORD: usize = size_of::<u64>();
        let last = row.stack.len().checked_sub(self.size)?;
        let mut found = (0..=last).step_by(WORD).filter_map(|at| {
            let word =
                |offset: usize| Some(u64::from_le_bytes(*row.stack.get(at + offset..)?.first_chunk()?));
            let queued = row.stack.get(at + self.state)? & 1 == 1;
            let is_sleeper = queued && word(self.function)? == self.waker && word(self.task)? == row.task;
            if is_sleeper { word(self.expires) } else { None }
        });
        let expires = found.next()?;
        found.next().is_none().then_some(expires)
    }
}

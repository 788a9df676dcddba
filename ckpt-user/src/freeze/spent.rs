//! Where the time of a freeze went, for events.jsonl.

use std::time::{Duration, Instant};

/// The parts of a freeze; what is left of it is the thaw, and whatever has no name here.
#[derive(Debug, Default, Clone, Copy)]
pub struct Spent {
    /// From the first interrupted thread until all stand still.
    pub stop: Duration,
    /// BPF iterators: hidden state, flags of mappings, descriptors.
    pub hidden: Duration,
    /// Descriptor tables and what is behind them.
    pub descriptors: Duration,
    /// Mappings and what is behind them.
    pub mappings: Duration,
    /// The rest of what is read of processes and threads, by /proc, ptrace and injected calls.
    pub tasks: Duration,
    /// Finding pages: registering mappings and scanning them.
    pub scan: Duration,
    /// Copying pages.
    pub copy: Duration,
}

impl Spent {
    /// By the names that events.jsonl has.
    pub fn named(&self) -> [(&'static str, Duration); 7] {
        [
            ("stop_us", self.stop),
            ("hidden_us", self.hidden),
            ("descriptors_us", self.descriptors),
            ("mappings_us", self.mappings),
            ("tasks_us", self.tasks),
            ("scan_us", self.scan),
            ("copy_us", self.copy),
        ]
    }
}

/// Adds the time that `work` takes to `part`.
pub fn timed<T>(part: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    *part += begun.elapsed();
    done
}

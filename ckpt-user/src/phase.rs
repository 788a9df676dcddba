//! The phases of a checkpoint and of a restart: one list of names for logs, progress and events.jsonl.
//!
//! ```text
//! Track ─▶ Freeze ─▶ Capture ─▶ Write ─▶ Commit        Open ─▶ Rebuild ─▶ Resume ─▶ Fill (lazy)
//!                                                              └─▶ Fill ─▶ Resume   (eager)
//! ```

use std::fmt;

/// A phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Rounds of finding and copying dirty pages beside the running program.
    Track,
    /// From the first stopped thread to the last one let go.
    Freeze,
    /// Reading what changed, within the freeze.
    Capture,
    /// Compressing and writing, after the thaw.
    Write,
    /// Making it durable and giving it its name.
    Commit,
    /// Opening and checking a chain of generations.
    Open,
    /// Making processes, mappings and descriptors.
    Rebuild,
    /// Bringing the memory in.
    Fill,
    /// Letting the threads run.
    Resume,
}

impl Phase {
    /// All of them, in the order of the picture above.
    pub const ALL: [Self; 9] = [
        Self::Track,
        Self::Freeze,
        Self::Capture,
        Self::Write,
        Self::Commit,
        Self::Open,
        Self::Rebuild,
        Self::Fill,
        Self::Resume,
    ];

    /// Its name in logs and events; never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Freeze => "freeze",
            Self::Capture => "capture",
            Self::Write => "write",
            Self::Commit => "commit",
            Self::Open => "open",
            Self::Rebuild => "rebuild",
            Self::Fill => "fill",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Phase::ALL.iter().map(|phase| phase.name()).collect();
        assert_eq!(names.len(), Phase::ALL.len());
    }
}

//! What cannot be saved or restored is an error with a name, never a silent skip.

use crate::task::proc::ProcDir;
use nix::unistd::Pid;

/// Why this checkpoint cannot be made; the program goes on undisturbed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A kind of state that a restart could not rebuild.
    #[error("process {process} {what}: {reason}")]
    Unsupported { process: String, what: String, reason: String },
    /// The tree did not stand still before the deadline.
    #[error("{0}")]
    NotStopped(String),
    /// Somebody else traces it, or the kernel does not let us.
    #[error("{0}")]
    Traced(String),
    /// The last process of the tree has ended.
    #[error("the program has ended")]
    Ended,
    /// A process vanished or changed while it was looked at.
    #[error("cannot read {what} of process {pid}")]
    Unreadable { pid: Pid, what: String, source: std::io::Error },
}

impl Refusal {
    pub fn unsupported(pid: Pid, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { process: named(pid), what: what.into(), reason: reason.into() }
    }
}

/// A process as a person knows it: its id and, while it is there, its name, in which it can write what it likes.
pub fn named(pid: Pid) -> String {
    // It may be known by another of its threads than the first.
    let group = ProcDir::process(pid).status().and_then(|status| status.decimal("Tgid"));
    let pid = group.map_or(pid, |group| Pid::from_raw(group as i32));
    match ProcDir::process(pid).text("comm") {
        Ok(name) => format!("{pid} ({})", name.trim_end_matches('\n').escape_debug()),
        Err(_) => pid.to_string(),
    }
}

/// Adds the process and what was read to an I/O error.
pub trait Reading<T> {
    fn reading(self, pid: Pid, what: &str) -> Result<T, Refusal>;
}

impl<T> Reading<T> for std::io::Result<T> {
    fn reading(self, pid: Pid, what: &str) -> Result<T, Refusal> {
        self.map_err(|source| Refusal::Unreadable { pid, what: what.to_owned(), source })
    }
}

//! What can go wrong with a job directory, in words that say what to do.

use std::io;
use std::path::Path;

/// What can go wrong with a job directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A system call failed.
    #[error("{path}: cannot {what}")]
    Io {
        /// The directory.
        path: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody else's.
    #[error(
        "{path} belongs to uid {owner}, but the images would be uid {wanted}'s; choose another directory with -d, \
         or run as its owner"
    )]
    NotOurs {
        /// The directory.
        path: String,
        /// Its owner.
        owner: u32,
        /// Who would write.
        wanted: u32,
    },
    /// Others can read it, and it holds other things, so its mode is not ours to change.
    #[error(
        "{path} (mode {mode:03o}) can be entered by others, and checkpoints hold the program's memory; choose a \
         directory of its own with -d, or first: chmod 700 {path}"
    )]
    TooOpen {
        /// The directory.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// `launch` into a directory with checkpoints.
    #[error(
        "{path} already holds checkpoints (the newest is {newest}); to go on from it: ckptbpf restart {path} (or \
         ckptbpf run, which does either); to begin anew: another directory with -d, or --new, which moves them to \
         {path}/old-N"
    )]
    HoldsCheckpoints {
        /// The directory.
        path: String,
        /// Number of the newest generation.
        newest: u64,
    },
    /// `restart` from a directory without any.
    #[error("{path} holds no checkpoint; begin one with: ckptbpf launch -d {path} PROGRAM")]
    NoCheckpoint {
        /// The directory.
        path: String,
    },
    /// Checkpoints can be read from there, not written.
    #[error("{path} cannot be written; give a directory for the new checkpoints with -d")]
    ReadOnly {
        /// The directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// job.json is damaged.
    #[error(
        "{path}/job.json cannot be read as a job's record; if no job writes there any more, remove that file \
         (the checkpoints do not need it)"
    )]
    BadRecord {
        /// The directory.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A writer holds the lock.
    #[error(
        "{path} is being written by {by}; to see it: ckptbpf status {path}; to stop it with a checkpoint: ckptbpf \
         checkpoint --kill {path}"
    )]
    Busy {
        /// The directory.
        path: String,
        /// The writer, as far as known.
        by: String,
    },
    /// The directory is where there are no locks.
    #[error(
        "{path} is on a file system without locks (flock(2)), by which one ckptbpf keeps out of the way of another; choose a \
         directory elsewhere with -d, or have the administrator mount it with them (Lustre: -o flock)"
    )]
    NoLocks {
        /// The directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program runs here, its supervisor does not.
    #[error(
        "the job of {path} still runs as pid {pid}; to supervise it again: ckptbpf attach -d {path} {pid}; or end \
         it first: kill {pid}"
    )]
    StillRuns {
        /// The directory.
        path: String,
        /// The job's first process.
        pid: i32,
    },
    /// The job's host cannot be asked.
    #[error(
        "the job of {path} was running on host {host} (boot {boot_id}) when its record was last written; whether \
         it still does cannot be known from here. If it does not, add --take-over; to leave the directory alone, \
         write to another with -d"
    )]
    Elsewhere {
        /// The directory.
        path: String,
        /// The host in the record.
        host: String,
        /// The boot in the record.
        boot_id: String,
    },
    /// Another writer has taken over.
    #[error("{path} was taken over by {by}: this supervisor commits no more checkpoints there")]
    LeaseLost {
        /// The directory.
        path: String,
        /// Who has it now.
        by: String,
    },
}

impl DirectoryError {
    pub(in crate::job) fn io(path: &Path, what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Io { path: path.display().to_string(), what, source: source.into() }
    }

    /// Of a lock that cannot be taken, though nobody has it.
    pub(in crate::job) fn unlocked(path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            // ENOLCK: of NFS whose lock manager is not to be had.
            Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOLCK) => {
                Self::NoLocks { path: path.display().to_string(), source }
            }
            _ => Self::io(path, "lock it", source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_told_from_one_that_fails() {
        let said = |number| {
            DirectoryError::unlocked(Path::new("/d"), io::Error::from_raw_os_error(number)).to_string()
        };
        for number in [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOLCK] {
            assert!(said(number).contains("without locks") && said(number).contains("-o flock"));
        }
        assert_eq!(said(libc::EIO), "/d: cannot lock it");
    }
}

//! How a supervised program ended, and the exit status that tells.

use std::io;

/// ckptbpf itself failed, usage errors included.
pub const FAILED: u8 = 125;
/// Checkpointed and stopped: the code by which HTCondor knows a self-checkpointing job.
pub const CHECKPOINTED: u8 = 85;
/// What a shell ends with for a program that is not there, and ld.so(8) for a library.
pub const NOT_FOUND: u8 = 127;

/// How a supervised program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By exit(2) with this status.
    Exited(u8),
    /// By this signal.
    Signaled(i32),
    /// Checkpointed and stopped, both in one instant.
    Checkpointed,
    /// It runs on without this command in front of it (`--detach`).
    Detached,
}

impl Ended {
    /// From what wait(2) gives.
    pub const fn from_wait(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) as u8),
            signal => Self::Signaled(signal),
        }
    }

    /// As wait(2) gives it.
    pub fn to_wait(self) -> i32 {
        match self {
            Self::Signaled(signal) => signal,
            other => i32::from(other.exit_status()) << 8,
        }
    }

    /// The status that ckptbpf exits with: the program's own, 128+N for signal N, 85 for a stop by checkpoint.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128u8.wrapping_add(u8::try_from(signal & 0x7f).unwrap_or(0)),
            Self::Checkpointed => CHECKPOINTED,
            Self::Detached => 0,
        }
    }
}

/// The program could not be started: statuses 126 and 127, as shells, env(1) and timeout(1) have them.
#[derive(Debug, thiserror::Error)]
pub enum CannotRun {
    /// 127.
    #[error("{program}: not found; give a path, or a name that is in PATH{}", sudo_hint(*.sudo))]
    NotFound {
        /// As it was given.
        program: String,
        /// Whether ckptbpf runs under sudo.
        sudo: bool,
        /// What execve(2) said.
        #[source]
        source: io::Error,
    },
    /// 126.
    #[error("{program}: found, but it cannot be run (is it executable, and for this machine?)")]
    NotRunnable {
        /// As it was given.
        program: String,
        /// What execve(2) said.
        #[source]
        source: io::Error,
    },
}

/// sudo resets the environment; the two failures that this causes say so.
pub fn sudo_hint(sudo: bool) -> &'static str {
    if sudo {
        "; sudo strips PATH, LD_LIBRARY_PATH and OMP_*: try \
         sudo --preserve-env=PATH,LD_LIBRARY_PATH $(command -v ckptbpf) launch …"
    } else {
        ""
    }
}

impl CannotRun {
    /// Sorts an error of execve(2) by what the exit status must be.
    pub fn from_exec(program: &str, sudo: bool, source: io::Error) -> Self {
        let program = program.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NotFound { program, sudo, source },
            _ => Self::NotRunnable { program, source },
        }
    }

    /// 127 or 126.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NotFound { .. } => NOT_FOUND,
            Self::NotRunnable { .. } => 126,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_contract() {
        assert_eq!(Ended::Exited(3).exit_status(), 3);
        assert_eq!(Ended::Signaled(libc::SIGKILL).exit_status(), 137);
        assert_eq!(Ended::Signaled(64).exit_status(), 192);
        assert_eq!(Ended::Checkpointed.exit_status(), 85);
        for ended in [Ended::Exited(0), Ended::Exited(255), Ended::Signaled(9), Ended::Signaled(64)] {
            assert_eq!(Ended::from_wait(ended.to_wait()), ended);
        }
        let not = |errno| CannotRun::from_exec("x", true, io::Error::from_raw_os_error(errno));
        assert_eq!(not(libc::ENOENT).exit_status(), 127);
        assert_eq!(not(libc::EACCES).exit_status(), 126);
        assert!(not(libc::ENOENT).to_string().contains("sudo --preserve-env"));
    }
}

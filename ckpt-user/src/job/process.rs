//! Which process is meant, for good: a pid alone may be another program by now.

use crate::sys::pidfd;
use crate::task::outside;
use crate::task::proc::Stat;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// A process that a record names: pid and start time together are never used twice in a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Process id, as the pid namespace that ckptbpf was started in numbers it (see [`outside`]).
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that is `pid` for this one, if it runs now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let pid = outside::known_as(pid)?;
        Ok(Self { pid, start_time: stat(pid)?.start_time() })
    }

    /// ckptbpf itself.
    pub fn current() -> io::Result<Self> {
        Self::of(nix::unistd::getpid().as_raw())
    }

    /// Whether it still runs; a zombie does not.
    pub fn runs(self) -> bool {
        stat(self.pid)
            .is_ok_and(|stat| stat.start_time() == self.start_time && outside::is_alive(self.pid, &stat))
    }

    /// The user who has started it, whatever ids a set-user-id program has taken since (credentials(7)).
    pub fn real_uid(self) -> Option<u32> {
        let status = outside::read(&format!("{}/status", self.pid)).ok()?;
        let status = String::from_utf8_lossy(&status).into_owned();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Whether it goes by ckptbpf's name, or by this program's.
    pub fn is_ckptbpf(self) -> bool {
        let own = stat(nix::unistd::getpid().as_raw()).map(|stat| stat.comm);
        stat(self.pid).is_ok_and(|stat| stat.comm == "ckptbpf" || own.is_ok_and(|own| own == stat.comm))
    }

    /// Returns when it has ended, all its threads and descriptors included, or after `patience`.
    pub fn wait_for_end(self, patience: PollTimeout) {
        let Ok(process) = pidfd::open(Pid::from_raw(self.pid)) else { return };
        if stat(self.pid).is_ok_and(|stat| stat.start_time() == self.start_time) {
            wait_for_end_of(process.as_fd(), patience);
        }
    }
}

/// The same, of the process behind a pidfd.
pub fn wait_for_end_of(process: BorrowedFd<'_>, patience: PollTimeout) {
    let mut ends = [PollFd::new(process, PollFlags::POLLIN)];
    while poll(&mut ends, patience) == Err(Errno::EINTR) {}
}

/// The parent of a process, for walking up a tree; ids as in [`ProcessId`].
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid).ok().map(|stat| stat.parent().as_raw()).filter(|parent| *parent > 0)
}

fn stat(pid: i32) -> io::Result<Stat> {
    Stat::parse(&String::from_utf8_lossy(&outside::read(&format!("{pid}/stat"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_a_reaped_one_does_not() {
        assert!(ProcessId::current().unwrap().runs());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        assert!(id.runs());
        assert_eq!(parent(id.pid), Some(nix::unistd::getpid().as_raw()));
        assert!(!ProcessId { start_time: id.start_time + 1, ..id }.runs());
        id.wait_for_end(PollTimeout::ZERO);
        assert!(id.runs());
        child.kill().unwrap();
        id.wait_for_end(PollTimeout::NONE);
        assert!(!id.runs(), "a zombie");
        child.wait().unwrap();
        assert!(!id.runs());
        id.wait_for_end(PollTimeout::NONE);
    }
}

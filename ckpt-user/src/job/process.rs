//! Which process is meant, for good: a pid alone may be another program by now.

use crate::sys::pidfd;
use crate::task::outside;
use crate::task::proc::Stat;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

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

    /// Whether there is such a process of our own user's that /proc does not show us: a worker of a daemon, where it shows nobody
    /// what they may not trace (`hidepid`, proc(5)). When it has started is not to be known then.
    pub fn is_hidden(self) -> bool {
        use io::ErrorKind::{NotFound, PermissionDenied};
        let is_not_shown =
            stat(self.pid).is_err_and(|error| matches!(error.kind(), NotFound | PermissionDenied));
        is_not_shown && kill(Pid::from_raw(self.pid), None).is_ok()
    }

    /// Whether it runs, and goes on to. The end of one that is being killed, which takes a while with much memory, is waited for,
    /// `patience` at most.
    pub fn goes_on(self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.runs() {
            if !stat(self.pid).is_ok_and(|stat| outside::is_dying(self.pid, &stat)) || Instant::now() > until
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
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
        if stat(self.pid).is_ok_and(|stat| stat.start_time() == self.start_time) || self.is_hidden() {
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

/// The nearest ckptbpf above this process, which then is part of what that supervises.
pub fn ckptbpf_above() -> Option<i32> {
    /// A tree deeper than this is a loop in what /proc told while it changed.
    const DEEPEST: usize = 4096;
    let own = ProcessId::current().ok()?.pid;
    let mut above = std::iter::successors(parent(own), |pid| parent(*pid)).take(DEEPEST);
    above.find(|pid| ProcessId::of(*pid).is_ok_and(ProcessId::is_ckptbpf))
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
        assert!(id.runs() && !id.is_hidden());
        assert_eq!(parent(id.pid), Some(nix::unistd::getpid().as_raw()));
        assert!(!ProcessId { start_time: id.start_time + 1, ..id }.runs());
        id.wait_for_end(PollTimeout::ZERO);
        assert!(id.runs());
        child.kill().unwrap();
        id.wait_for_end(PollTimeout::NONE);
        assert!(!id.runs(), "a zombie");
        child.wait().unwrap();
        assert!(!id.runs() && !id.is_hidden());
        id.wait_for_end(PollTimeout::NONE);
    }

    #[test]
    fn what_is_being_killed_does_not_go_on() {
        use std::io::{BufRead, BufReader};
        let mut large = std::process::Command::new("python3")
            .args(["-c", "import time; large = b'x' * (300 << 20); print(flush=True); time.sleep(1000)"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(large.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let id = ProcessId::of(large.id() as i32).unwrap();
        assert!(id.goes_on(Duration::from_secs(60)));
        large.kill().unwrap();
        assert!(!id.goes_on(Duration::from_secs(60)));
        large.wait().unwrap();
    }
}

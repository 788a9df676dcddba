//! Which process is meant, for good: a pid alone may be another program by now.

use super::outside;
use std::io;

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
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_time: stat.start_time })
    }

    /// ckptbpf itself.
    pub fn current() -> io::Result<Self> {
        Self::of(nix::unistd::getpid().as_raw())
    }

    /// Whether it still runs; a zombie does not.
    pub fn runs(self) -> bool {
        Stat::read(self.pid)
            .is_ok_and(|stat| stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X'))
    }
}

/// The parent of a process, for walking up a tree; ids as in [`ProcessId`].
pub fn parent(pid: i32) -> Option<i32> {
    Stat::read(pid).ok().map(|stat| stat.parent).filter(|parent| *parent > 0)
}

struct Stat {
    state: char,
    parent: i32,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = outside::read(&format!("{pid}/stat"))?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as known"))
    }

    /// proc_pid_stat(5). The name stands in parentheses and may itself hold any byte, so fields count from the last one.
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        // State is field 3, the parent 4; start time is 22, so 17 lie between.
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self { state, parent, start_time })
    }
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
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!id.runs());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = b"12 (a) R 9 (b) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start_time), ('S', 7, 987_654));
        assert!(Stat::parse(b"garbage").is_none());
    }
}

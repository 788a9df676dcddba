//! One process as /proc/PID/stat shows it.

use std::fmt;
use std::path::Path;

/// A process in the box; ids are those inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub comm: String,
    /// `R`, `S`, `D`, `T`, `t`, `Z` …, as in proc(5).
    pub state: char,
    pub threads: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, parent, comm, state, threads } = self;
        write!(out, "process {pid} ({comm}), state {state}, parent {parent}, {threads} threads")
    }
}

/// Every process but pid 1 that a procfs mount shows; one that ends meanwhile is left out.
pub fn list(procfs: &Path) -> Vec<Process> {
    let Ok(folder) = std::fs::read_dir(procfs) else { return Vec::new() };
    let pid = |name: &std::ffi::OsStr| name.to_str()?.parse::<i32>().ok();
    let mut found: Vec<Process> = folder
        .flatten()
        .filter_map(|entry| pid(&entry.file_name()))
        .filter(|&pid| pid != 1)
        .filter_map(|pid| parse(&std::fs::read_to_string(procfs.join(format!("{pid}/stat"))).ok()?))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Whether a signal to the whole process is among those it has not taken yet (`ShdPnd`, proc(5)).
pub fn is_pending(procfs: &Path, pid: i32, signal: i32) -> bool {
    let status = std::fs::read_to_string(procfs.join(format!("{pid}/status"))).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    pending.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The id, as /proc shows it here, of the process that pid namespace of `init` knows as `pid`.
pub fn outside(init: i32, pid: i32) -> Option<i32> {
    let levels = |pid: i32| -> Option<Vec<i32>> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(ids.split_whitespace().filter_map(|id| id.parse().ok()).collect())
    };
    // The box's own namespace is the last that its init has an id in.
    let level = levels(init)?.len() - 1;
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let same = |&other: &i32| levels(other).is_some_and(|ids| ids.get(level) == Some(&pid));
    let parent = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse(&stat).map(|process| process.parent)
    };
    // One in a namespace of its own may be of another box.
    let below = |&other: &i32| {
        namespace(other) == namespace(init)
            || std::iter::successors(Some(other), parent).any(|one| one == init)
    };
    let found = list(Path::new("/proc")).into_iter().map(|process| process.pid);
    found.filter(same).find(below)
}

/// The comm may hold spaces and parentheses: it ends at the last one.
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (pid, comm) = head.split_once(" (")?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        comm: comm.into(),
        state: fields.first()?.chars().next()?,
        threads: fields.get(17)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comm_with_parentheses_is_read_whole() {
        let stat = "17 (a) b (c) S 3 17 17 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 5 0 100 0 0";
        let process = parse(stat).unwrap();
        assert_eq!(process, Process { pid: 17, parent: 3, comm: "a) b (c".into(), state: 'S', threads: 5 });
    }
}

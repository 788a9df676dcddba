//! What processes take of the machine, as /proc has it.

use std::fs;

use super::machine::kib;

/// Microseconds of a tick: there are 100 in a second on x86-64 (USER_HZ).
const TICK: u64 = 10_000;

/// Of several processes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Time on processors, that of children too that have ended and were waited for.
    pub cpu_us: u64,
    /// The most memory that each has had at one time (VmHWM), added up.
    pub peak_kib: u64,
}

/// A line of /proc/PID/stat, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: i32,
    parent: i32,
    /// Ticks of its own.
    own: u64,
    /// Of children that it has waited for.
    waited: u64,
}

impl Stat {
    /// The name in parentheses may hold anything, parentheses and spaces too.
    fn parse(line: &str) -> Option<Self> {
        let pid = line.split_once(" (")?.0.parse().ok()?;
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            waited: ticks(13)? + ticks(14)?,
        })
    }

    fn read(pid: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// Of `root` and all that has come from it, without `program` and what has come from that.
pub fn of(root: i32, program: i32) -> Usage {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<Stat> = entries.filter_map(|entry| Stat::read(entry.file_name().to_str()?)).collect();
    let mut usage = Usage::default();
    for process in family(&all, root, program) {
        usage.cpu_us += (process.own + process.waited) * TICK;
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
        usage.peak_kib += kib(&status, "VmHWM").unwrap_or(0);
    }
    usage
}

/// CPU time of the children that we have waited for, in microseconds.
pub fn of_waited() -> u64 {
    Stat::read("self").map_or(0, |stat| stat.waited * TICK)
}

fn family(all: &[Stat], root: i32, without: i32) -> Vec<Stat> {
    let mut found: Vec<Stat> = all.iter().filter(|process| process.pid == root).copied().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        found.extend(all.iter().filter(|process| process.parent == parent && process.pid != without));
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_hides_nothing() {
        let line = "4711 (a) b (c) S 42 4711 1 0 -1 4194560 1 2 3 4 100 20 7 3 20 0 1 0 12345 1000 200\n";
        assert_eq!(Stat::parse(line), Some(Stat { pid: 4711, parent: 42, own: 120, waited: 10 }));
        assert_eq!(Stat::parse("4711 (a) S 42"), None);
    }

    #[test]
    fn the_program_is_not_of_the_supervisor_s_family() {
        let stat = |pid, parent| Stat { pid, parent, own: 0, waited: 0 };
        let all = [stat(1, 0), stat(5, 1), stat(6, 5), stat(7, 5), stat(8, 7), stat(9, 6), stat(10, 1)];
        let pids: Vec<i32> = family(&all, 5, 7).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [5, 6, 9]);
        assert!(family(&all, 11, 7).is_empty());
    }

    #[test]
    fn of_ourselves_there_is_something() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(of(pid, 0).peak_kib > 0);
    }
}

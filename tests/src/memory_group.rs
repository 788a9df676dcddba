//! A control group with a limit on memory, as batch systems give jobs one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sandbox::{Sandbox, until};

/// The group; its processes go with their box.
pub struct MemoryGroup {
    folder: PathBuf,
    is_second: bool,
}

impl MemoryGroup {
    /// One with this limit in bytes; none where there is no such controller, or it cannot be had.
    pub fn make(name: &str, limit: u64) -> Option<Self> {
        let name = format!("ckptbpf-{name}-of-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let is_second = !first.is_dir();
        let above = if is_second { Path::new("/sys/fs/cgroup") } else { first };
        let folder = above.join(name);
        fs::create_dir(&folder).ok()?;
        let group = Self { folder, is_second };
        let file = if is_second { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(group.folder.join(file), limit.to_string()).ok()?;
        Some(group)
    }

    /// Takes a process of a box in.
    pub fn take(&self, sandbox: &Sandbox, pid: i32) {
        let pid = sandbox.outside_pid(pid).expect("it is there").to_string();
        fs::write(self.folder.join("cgroup.procs"), pid).expect("it can be moved");
    }

    /// Takes it into a group of this name below.
    pub fn take_below(&self, name: &str, sandbox: &Sandbox, pid: i32) {
        let folder = self.folder.join(name);
        let _ = fs::create_dir(&folder);
        let pid = sandbox.outside_pid(pid).expect("it is there").to_string();
        fs::write(folder.join("cgroup.procs"), pid).expect("it can be moved");
    }

    /// Bytes that it had at most.
    pub fn peak(&self) -> u64 {
        self.number(if self.is_second { "memory.peak" } else { "memory.max_usage_in_bytes" })
    }

    /// How often it wanted more than the limit.
    pub fn refused(&self) -> u64 {
        if !self.is_second {
            return self.number("memory.failcnt");
        }
        let events = fs::read_to_string(self.folder.join("memory.events")).unwrap_or_default();
        let of = |line: &str| line.strip_prefix("max ")?.parse::<u64>().ok();
        events.lines().find_map(of).expect("memory.events")
    }

    fn number(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.folder.join(file)).expect("a number of the group's");
        text.trim().parse().expect("a number")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its processes are gone with the box, or in a moment; what stays is found.
        until(
            Duration::from_secs(10),
            || None,
            || {
                let below = fs::read_dir(&self.folder).into_iter().flatten().flatten();
                below.filter(|one| one.path().is_dir()).for_each(|one| drop(fs::remove_dir(one.path())));
                fs::remove_dir(&self.folder).is_ok()
            },
        );
    }
}

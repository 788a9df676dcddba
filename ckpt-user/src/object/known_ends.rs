//! Ends of files that have not changed since the checkpoint before: they are read beside the running program, once, so that no
//! freeze waits for the disk or the network.
//!
//! ```text
//!  freeze n: all read, times noted ─▶ checkpoint n+1: read beside ─▶ freeze n+1, n+2, …: times as noted ─▶ not read
//! ```
//! The times may be relied on because they were noted in a freeze. No write of the program's is under way in one, so what it
//! writes later gives the file the time of a later moment. That is another time than the noted one, if by then the noted one was
//! older than the clock's tick (it is *settled*). Stores through a shared mapping give a time only with the first one to each
//! page: files that are mapped so are read in the freeze.

use super::Seen;
use super::ends::Ends;
use crate::memory::vma;
use crate::sys::pidfd;
use crate::task::proc::{ProcDir, is_gone, reached_by};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, XFS_SUPER_MAGIC,
};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Those whose every write gives a file a new time, by this machine's clock.
const LOCAL: [FsType; 4] = [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, XFS_SUPER_MAGIC];
/// More than two ticks of the slowest clock (100 Hz).
const TICK: Duration = Duration::from_millis(20);
/// The same where a file system counts whole seconds, or pairs of them.
const COARSE: Duration = Duration::from_secs(5);

/// By device and inode, as of the last freeze.
#[derive(Debug, Default)]
pub struct Known(HashMap<(u64, u64), Entry>);

#[derive(Debug, Clone)]
struct Entry {
    /// Who has it open for reading.
    reader: (Pid, i32),
    stamp: Stamp,
    /// The stamp is of this time, or was met then for the first time: by the clock that times of files are of.
    since: Duration,
    settled: bool,
    /// How many of each end are wanted.
    bytes: u64,
    ends: Option<Ends>,
}

/// What is another one after each write. Times are seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn tick(&self) -> Duration {
        if self.modified.1 == 0 || self.changed.1 == 0 { COARSE } else { TICK }
    }
}

/// The clock that gives files their times: it stands still between two ticks.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(Duration::ZERO, Duration::from)
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Known {
    /// In a freeze that has been there since `now`: keeps what is known of the file in `old`, which is of `bytes` of each end at
    /// least if it is returned.
    pub fn meet(
        &mut self,
        old: &mut Self,
        (metadata, system): (&Metadata, FsType),
        seen: &Seen,
        bytes: u64,
        now: Duration,
    ) -> Option<Ends> {
        let is_local = LOCAL.contains(&system);
        if !is_local && system != NFS_SUPER_MAGIC {
            return None;
        }
        let stamp = Stamp::of(metadata);
        let reader = (seen.pid, seen.number);
        let known = old.0.remove(&identity(metadata)).filter(|known| known.stamp == stamp);
        let mut entry = known.unwrap_or_else(|| {
            let changed = Duration::new(stamp.changed.0.max(0) as u64, stamp.changed.1 as u32);
            // A server's clock is another one.
            let since = if is_local { changed } else { self::now() };
            Entry { reader, stamp, since, settled: false, bytes, ends: None }
        });
        (entry.reader, entry.bytes) = (reader, bytes);
        entry.settled |= now.saturating_sub(entry.since) > stamp.tick();
        let ends = entry.ends.clone().filter(|ends| ends.bytes >= bytes);
        self.0.insert(identity(metadata), entry);
        ends
    }

    /// Beside the running program: reads what the next freeze is spared; how many bytes that were.
    pub fn read_beside(&mut self, members: &[Pid]) -> u64 {
        if !self.0.values().any(Entry::is_wanted) {
            return 0;
        }
        // What is mapped later than this gets a new time with the first store.
        let Ok(mapped) = shared_mappings(members) else { return 0 };
        let mut count = 0;
        let wanted = |(key, entry): &(&(u64, u64), &mut Entry)| entry.is_wanted() && !mapped.contains(&key.1);
        for (key, entry) in self.0.iter_mut().filter(wanted) {
            entry.ends = entry.read(*key);
            count += entry.ends.as_ref().map_or(0, |ends| ends.length(entry.stamp.size));
        }
        count
    }
}

impl Entry {
    fn is_wanted(&self) -> bool {
        self.settled && self.ends.as_ref().is_none_or(|ends| ends.bytes < self.bytes)
    }

    /// Through what a process has open: opening the file anew may wait, be forbidden, or break a lease.
    fn read(&self, key: (u64, u64)) -> Option<Ends> {
        let (pid, number) = self.reader;
        let is_it = |found: &Metadata| identity(found) == key && Stamp::of(found) == self.stamp;
        let there = std::fs::metadata(ProcDir::process(pid).path(format!("fd/{number}")));
        there.ok().filter(is_it)?;
        let process = pidfd::of_thread(pid).ok()?;
        let file = File::from(pidfd::get_fd(process.as_fd(), number).ok()?);
        file.metadata().ok().filter(is_it)?;
        Ends::of(file.as_fd(), self.stamp.size, self.bytes).ok()
    }
}

/// The inodes of which a process has a shared mapping, whatever may be done with it now. The device that is shown is not always
/// that of the file.
fn shared_mappings(members: &[Pid]) -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for &pid in members {
        match ProcDir::process(reached_by(pid)).text("maps").and_then(|text| vma::parse(&text)) {
            Ok(all) => inodes.extend(all.iter().filter(|raw| raw.is_shared()).map(|raw| raw.inode)),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(inodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    /// One freeze at `now`.
    fn freeze(known: &mut Known, file: &File, system: FsType, bytes: u64, now: Duration) -> Option<Ends> {
        let seen = Seen::of(Pid::this(), file.as_raw_fd(), PathBuf::new(), String::new()).0;
        let mut old = std::mem::take(known);
        known.meet(&mut old, (&file.metadata().unwrap(), system), &seen, bytes, now)
    }

    fn beside(known: &mut Known) -> u64 {
        known.read_beside(&[Pid::this()])
    }

    #[test]
    fn only_what_has_not_changed_since_a_freeze_and_a_tick_before_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let changed = || {
            let found = file.metadata().unwrap();
            Duration::new(found.ctime() as u64, found.ctime_nsec() as u32)
        };
        let at = changed();
        let mut known = Known::default();
        // In the tick in which it was written, and well after it.
        assert_eq!(freeze(&mut known, &file, EXT4_SUPER_MAGIC, 4096, at + TICK), None);
        assert_eq!(beside(&mut known), 0);
        assert_eq!(freeze(&mut known, &file, EXT4_SUPER_MAGIC, 4096, at + 2 * TICK), None);
        assert_eq!(beside(&mut known), 4096 + 10_000 - 4096);
        assert_eq!(beside(&mut known), 0, "it is known");
        let read = Ends::of(file.as_fd(), 10_000, 4096).ok();
        assert_eq!(freeze(&mut known, &file, EXT4_SUPER_MAGIC, 4096, at + 2 * TICK), read);
        // More of it is wanted than is known.
        assert_eq!(freeze(&mut known, &file, EXT4_SUPER_MAGIC, 8192, at + 2 * TICK), None);
        assert_eq!(beside(&mut known), 10_000);
        // Written to, in place.
        while changed() == at {
            std::fs::write(&path, vec![8; 10_000]).unwrap();
        }
        assert_eq!(freeze(&mut known, &file, EXT4_SUPER_MAGIC, 4096, changed() + TICK), None);
        assert_eq!(beside(&mut known), 0);
        // By another clock it has no age, but is watched for a while; and some file systems are not to be relied on.
        for (system, expected) in [(NFS_SUPER_MAGIC, 10_000), (nix::sys::statfs::FUSE_SUPER_MAGIC, 0)] {
            let (mut known, then) = (Known::default(), now());
            assert_eq!(freeze(&mut known, &file, system, 8192, then), None);
            assert_eq!(beside(&mut known), 0);
            assert_eq!(freeze(&mut known, &file, system, 8192, then + COARSE), None);
            assert_eq!(beside(&mut known), expected);
        }
    }
}

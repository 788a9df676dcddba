//! What a job's checkpoints have cost, by its own log.

use super::super::directory::{DirectoryError, JobDir};
use nix::fcntl::OFlag;
use serde::Deserialize;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::time::Duration;

/// How many of the newest checkpoints count.
const LOOKED_AT: usize = 5;

/// Of the log, its end: a checkpoint has some ten lines of some 200 bytes.
const TAIL: u64 = 64 << 10;

/// What a line of events.jsonl tells, as far as it matters.
#[derive(Deserialize)]
struct Line {
    phase: String,
    microseconds: u64,
}

/// The slowest of the newest checkpoints; none if none was taken.
///
/// # Errors
/// The log cannot be read.
pub fn slowest(dir: &JobDir) -> Result<Option<Duration>, DirectoryError> {
    let mut log = match dir.open_file("events.jsonl", OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(DirectoryError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut read = || -> std::io::Result<Vec<u8>> {
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        (&log).take(TAIL).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().map_err(|error| dir.io("read events.jsonl in it", error))?;
    Ok(slowest_of(&String::from_utf8_lossy(&tail)))
}

/// The same of the lines of a log. What is none, as the first of a tail may be, is passed over.
pub fn slowest_of(log: &str) -> Option<Duration> {
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let checkpoints = lines.filter(|line| line.phase == "checkpoint").take(LOOKED_AT);
    checkpoints.map(|line| Duration::from_micros(line.microseconds)).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ids::FsIds;

    fn line(phase: &str, microseconds: u64) -> String {
        format!("{{\"time\":1.5,\"phase\":\"{phase}\",\"microseconds\":{microseconds},\"id\":3}}\n")
    }

    #[test]
    fn the_slowest_of_the_newest_counts() {
        let log: String = [9_000_000, 1, 2, 7, 3, 4].map(|took| line("checkpoint", took)).concat();
        assert_eq!(slowest_of(&log), Some(Duration::from_micros(7)));
        let others = line("freeze", 99) + &line("error", 99);
        assert_eq!(slowest_of(&others), None);
        assert_eq!(slowest_of(&(line("checkpoint", 5) + &others)), Some(Duration::from_micros(5)));
        assert_eq!(slowest_of("\"phase\":\"checkpoint\"}\n{}\nx\n"), None);
        assert_eq!(slowest_of(&line("checkpoint", u64::MAX)), Some(Duration::from_micros(u64::MAX)));
    }

    #[test]
    fn the_end_of_a_long_log_is_enough() {
        let base = tempfile::tempdir().unwrap();
        let dir = JobDir::create(&base.path().join("d"), &FsIds::current()).unwrap();
        assert_eq!(slowest(&dir).unwrap(), None);
        let mut log = line("checkpoint", 1_000_000);
        while log.len() < 2 * TAIL as usize {
            log += &line("freeze", 8);
        }
        log += &line("checkpoint", 12);
        std::fs::write(dir.path().join("events.jsonl"), log).unwrap();
        assert_eq!(slowest(&dir).unwrap(), Some(Duration::from_micros(12)));
        std::fs::remove_file(dir.path().join("events.jsonl")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("events.jsonl")).unwrap();
        assert!(slowest(&dir).is_err(), "no link is followed");
    }
}

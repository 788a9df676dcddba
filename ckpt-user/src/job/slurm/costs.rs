//! What a job's checkpoints and restarts have cost, by its own log.

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
    /// When it was written, in seconds since 1970.
    #[serde(default)]
    time: f64,
    phase: String,
    microseconds: u64,
}

/// How a run that began with a restart has spent its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// From its beginning until the program ran.
    pub before: Duration,
    /// From there to its last checkpoint.
    pub ran: Duration,
    /// From there until now.
    pub since: Duration,
    /// What the slowest of the newest checkpoints took.
    pub cost: Duration,
}

/// The slowest of the newest checkpoints; none if none was taken.
///
/// # Errors
/// The log cannot be read.
pub fn slowest(dir: &JobDir) -> Result<Option<Duration>, DirectoryError> {
    Ok(tail(dir)?.and_then(|log| slowest_of(&log)))
}

/// Of the run that has `begun` then (since 1970); none if it has restarted nothing, or has run for so long that the log begins later.
///
/// # Errors
/// The log cannot be read.
pub fn spent(dir: &JobDir, begun: Duration, now: Duration) -> Result<Option<Spent>, DirectoryError> {
    Ok(tail(dir)?.and_then(|log| spent_of(&log, begun, now)))
}

/// The end of the log; none where there is no log.
fn tail(dir: &JobDir) -> Result<Option<String>, DirectoryError> {
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
    Ok(Some(String::from_utf8_lossy(&tail).into_owned()))
}

/// The newest first. What is none, as the first of a tail may be, is passed over.
fn lines(log: &str) -> impl Iterator<Item = Line> {
    log.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok())
}

/// [`slowest`], of the lines of a log.
pub fn slowest_of(log: &str) -> Option<Duration> {
    let checkpoints = lines(log).filter(|line| line.phase == "checkpoint").take(LOOKED_AT);
    checkpoints.map(|line| Duration::from_micros(line.microseconds)).max()
}

/// [`spent`], of the lines of a log.
pub fn spent_of(log: &str, begun: Duration, now: Duration) -> Option<Spent> {
    let mut last = None;
    for line in lines(log) {
        let then = Duration::try_from_secs_f64(line.time).ok()?;
        match line.phase.as_str() {
            "checkpoint" if last.is_none() => {
                last = Some(then.saturating_sub(Duration::from_micros(line.microseconds)));
            }
            "restart" => {
                let before = then.checked_sub(begun)?;
                let (ran, since) = (last?.saturating_sub(then), now.saturating_sub(then));
                return Some(Spent { before, ran, since, cost: slowest_of(log).unwrap_or_default() });
            }
            _ => {}
        }
    }
    None
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
    fn what_a_run_has_spent_is_told_by_its_restart_and_its_last_checkpoint() {
        let at = |time: f64, phase: &str, seconds: u64| {
            format!("{{\"time\":{time},\"phase\":\"{phase}\",\"microseconds\":{}}}\n", seconds * 1_000_000)
        };
        let seconds = Duration::from_secs;
        let earlier = at(50.0, "restart", 5) + &at(90.0, "checkpoint", 3);
        let own = at(640.0, "restart", 530) + &at(641.0, "freeze", 0) + &at(643.0, "checkpoint", 2);
        let told = |log: &str| spent_of(log, seconds(100), seconds(650));
        let spent = Spent { before: seconds(540), ran: seconds(1), since: seconds(10), cost: seconds(3) };
        assert_eq!(told(&(earlier.clone() + &own)), Some(spent));
        assert_eq!(told(&earlier), None, "of an earlier run");
        assert_eq!(told(&(earlier + &at(640.0, "restart", 530))), None, "without a checkpoint");
        assert_eq!(told(&own.replace("640", "-640")), None);
        assert_eq!(told(""), None);
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

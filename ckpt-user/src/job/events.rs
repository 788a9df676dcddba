//! `DIR/events.jsonl`: one line a phase, for people and programs that want to know what a job went through.
//!
//! `{"time":1700000000.123456,"phase":"freeze","microseconds":812,"id":17,"pages":4096}`: seconds since 1970, the
//! phase, how long it took, then counts by name. Each line is one write(2) in append mode, so lines never mix.
//! Never written between freeze and thaw, and never a reason for a checkpoint to fail.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use serde_json::{Map, Value};

use super::directory::{DirectoryError, JobDir};
use super::terminal;
use crate::phase::Phase;

const NAME: &str = "events.jsonl";
const OLD: &str = "events.jsonl.1";
/// At a line of 150 bytes and five a checkpoint, a day of checkpoints every 10 s is 6 MiB; two files are kept.
const FILE_LIMIT: u64 = 16 << 20;

/// The log of a job's phases.
#[derive(Debug)]
pub struct EventLog {
    dir: Arc<JobDir>,
    file: File,
    written: u64,
    limit: u64,
}

/// One line, built up.
#[derive(Debug, Clone)]
pub struct Event(Map<String, Value>);

impl Event {
    /// A phase and how long it took.
    pub fn phase(phase: Phase, took: Duration) -> Self {
        Self::named(phase.name(), took)
    }

    /// Something that is no single phase: `checkpoint`, `restart`, `lazy-done`, `error` …
    pub fn named(name: &str, took: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut fields = Map::new();
        fields.insert("time".into(), now.as_secs_f64().into());
        fields.insert("phase".into(), name.into());
        fields.insert("microseconds".into(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX).into());
        Self(fields)
    }

    /// Adds a count.
    #[must_use]
    pub fn count(mut self, name: &str, count: u64) -> Self {
        self.0.insert(name.into(), count.into());
        self
    }

    /// Adds a text: a reason, a path.
    #[must_use]
    pub fn text(mut self, name: &str, text: impl Into<String>) -> Self {
        self.0.insert(name.into(), text.into().into());
        self
    }
}

/// As `-vv` shows it: `freeze: 0.8 ms; id 17, pages 4096`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |name: &str| self.0.get(name);
        let took = Duration::from_micros(of("microseconds").and_then(Value::as_u64).unwrap_or(0));
        let phase = of("phase").and_then(Value::as_str).unwrap_or_default();
        write!(f, "{phase}: {}", terminal::duration(took))?;
        let others =
            self.0.iter().filter(|(name, _)| !["time", "phase", "microseconds"].contains(&name.as_str()));
        for (place, (name, value)) in others.enumerate() {
            let gap = if place == 0 { ";" } else { "," };
            match value.as_str() {
                Some(text) => write!(f, "{gap} {name} {text}")?,
                None => write!(f, "{gap} {name} {value}")?,
            }
        }
        Ok(())
    }
}

impl EventLog {
    /// Opens or begins the log.
    pub fn open(dir: &Arc<JobDir>) -> Result<Self, DirectoryError> {
        let file = begin(dir)?;
        let written = file.metadata().map_or(0, |found| found.len());
        Ok(Self { dir: dir.clone(), file, written, limit: FILE_LIMIT })
    }

    /// Appends a line. An error is worth a warning and nothing more.
    pub fn write(&mut self, event: &Event) -> Result<(), DirectoryError> {
        log::debug!("{event}");
        if self.written >= self.limit {
            self.dir.rename(NAME, OLD)?;
            self.file = begin(&self.dir)?;
            self.written = 0;
        }
        let mut line = Value::Object(event.0.clone()).to_string();
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|error| self.dir.io("write events.jsonl in it", error))?;
        self.written = self.written.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

fn begin(dir: &JobDir) -> Result<File, DirectoryError> {
    dir.open_file(NAME, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ids::FsIds;

    #[test]
    fn every_event_is_a_line_of_json_and_the_log_stays_bounded() {
        let base = tempfile::tempdir().unwrap();
        let dir = Arc::new(JobDir::create(&base.path().join("d"), &FsIds::current()).unwrap());
        let mut log = EventLog::open(&dir).unwrap();
        let event =
            Event::phase(Phase::Freeze, Duration::from_micros(812)).count("pages", 9).text("why", "a\nb");
        log.write(&event).unwrap();
        drop(log);
        let mut log = EventLog { limit: 500, ..EventLog::open(&dir).unwrap() };
        for _ in 0..20 {
            log.write(&Event::named("lazy-done", Duration::ZERO)).unwrap();
        }
        let current = std::fs::read_to_string(dir.path().join(NAME)).unwrap();
        let old = std::fs::read_to_string(dir.path().join(OLD)).unwrap();
        for line in current.lines().chain(old.lines()) {
            let value: Value = serde_json::from_str(line).unwrap();
            assert!(value["time"].is_f64() && value["phase"].is_string() && value["microseconds"].is_u64());
        }
        assert!(current.len() < 700 && old.len() < 700);
        assert_eq!(event.to_string(), "freeze: 0.8 ms; pages 9, why a\nb");
        let fields = serde_json::to_value(&event.0).unwrap();
        assert_eq!(
            (&fields["phase"], &fields["microseconds"], &fields["pages"]),
            (&"freeze".into(), &812.into(), &9.into())
        );
    }
}

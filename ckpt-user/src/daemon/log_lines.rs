//! What the daemon has to tell whoever runs it: lines with the time, on standard error.

use crate::image::rfc3339;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || metadata.target().starts_with("ckptbpf")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let time = rfc3339(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
            let level = record.level().as_str().to_ascii_lowercase();
            let line = format!("{time} ckptbpf daemon: {level}: {}\n", record.args());
            // Nobody who reads it is no reason to fail.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sends the `log` macros there; `verbose` as in all verbs, but that jobs are told of in any case.
pub fn init(verbose: u8) {
    static LINES: Lines = Lines;
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(match verbose {
            0 => LevelFilter::Info,
            1 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        });
    }
}

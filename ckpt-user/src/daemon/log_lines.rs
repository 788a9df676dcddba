//! What the daemon has to tell whoever runs it: lines with the time, on standard error.
//!
//! What users do has lines in it. So nobody waits for them to be written: a thread does that, and lines beyond those that may wait for it
//! are lost, which is told. And a log of the daemon's own never grows beyond a size.

use super::background;
use crate::image::rfc3339;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::stat::fstat;
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a log; then it begins anew.
const SIZE: i64 = 16 << 20;

/// Lines that may wait to be written.
const WAITING: usize = 4096;

/// How long the end of the daemon waits for what is yet to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What the thread is to do.
enum Order {
    Write(String),
    /// All before is written: that is to be told.
    Tell(SyncSender<()>),
}

struct Lines {
    /// None before there is a thread for it.
    writer: OnceLock<SyncSender<Order>>,
    lost: AtomicU64,
    /// Standard error is a file of the daemon's own.
    is_own: OnceLock<bool>,
}

static LINES: Lines = Lines { writer: OnceLock::new(), lost: AtomicU64::new(0), is_own: OnceLock::new() };

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || metadata.target().starts_with("ckptbpf")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = line(record.level(), &record.args().to_string());
        match self.writer.get() {
            None => self.write(&line),
            Some(writer) => {
                if writer.try_send(Order::Write(line)).is_err() {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn flush(&self) {
        let (done, heard) = mpsc::sync_channel(1);
        if let Some(writer) = self.writer.get()
            && writer.try_send(Order::Tell(done)).is_ok()
        {
            let _ = heard.recv_timeout(LAST_LINES);
        }
    }
}

impl Lines {
    fn serve(&self, orders: Receiver<Order>) {
        for order in orders {
            match order {
                Order::Write(text) => {
                    let lost = self.lost.swap(0, Ordering::Relaxed);
                    if lost > 0 {
                        self.write(&line(Level::Warn, &format!("{lost} lines before this are lost")));
                    }
                    self.write(&text);
                }
                Order::Tell(done) => drop(done.send(())),
            }
        }
    }

    fn write(&self, line: &str) {
        let is_own = self.is_own.get().copied().unwrap_or(false);
        if is_own && fstat(io::stderr()).is_ok_and(|found| found.st_size > SIZE) {
            // It is only added to.
            let _ = nix::unistd::ftruncate(io::stderr(), 0);
        }
        // Nobody who reads it is no reason to fail.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn line(level: Level, text: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = rfc3339(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    format!("{time} ckptbpf daemon: {}: {text}\n", level.as_str().to_ascii_lowercase())
}

/// Sends the `log` macros there; `verbose` as in all verbs, but that jobs are told of in any case. `is_own`: standard error is a file
/// that only the daemon and its workers write to, at its end.
pub fn init(verbose: u8, is_own: bool) {
    LINES.is_own.get_or_init(|| is_own);
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(match verbose {
            0 => LevelFilter::Info,
            1 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        });
    }
}

/// Goes on in the file that is at `path` now.
pub fn open_again(path: &Path) {
    match background::open_log(path) {
        Ok(()) => log::info!("the log was opened again"),
        Err(error) => log::warn!("{}: it cannot be opened again: {error}", path.display()),
    }
}

/// From here on another thread writes.
///
/// # Errors
/// There is none to be had.
pub fn begin_writing() -> io::Result<()> {
    let (writer, orders) = mpsc::sync_channel(WAITING);
    std::thread::Builder::new().name("log".into()).spawn(move || LINES.serve(orders))?;
    LINES.writer.get_or_init(|| writer);
    Ok(())
}

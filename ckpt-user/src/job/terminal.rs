//! What a supervisor says: on standard error, prefixed `ckptbpf: `, little, and never twice.
//!
//! The program has the terminal. So: a line at the start (on a terminal or with `-v`), warnings once each, and a
//! line at an abnormal end; `-v` a line a checkpoint, `-vv` phases and the eBPF programs' own log.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::control::CheckpointDone;

/// Each warning is remembered so that it is said once; a program of many kinds of warnings is a broken one.
const WARNINGS: usize = 256;

/// What the line at the start tells.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// As given.
    pub program: &'a str,
    /// First process.
    pub pid: i32,
    /// Whose it is.
    pub user: &'a str,
    /// Time between checkpoints.
    pub interval: Option<Duration>,
    /// As given or made up.
    pub dir: &'a Path,
}

/// The line at the start, without prefix.
pub fn start_line(start: &Start<'_>) -> String {
    let Start { program, pid, user, interval, dir } = start;
    let when = match interval {
        Some(interval) => format!("checkpoint every {}", duration(*interval)),
        None => format!("checkpoint on request (ckptbpf checkpoint {pid})"),
    };
    let place = dir.display();
    format!(
        "{program} (pid {pid}, user {user}): {when} in {place}; restart: ckptbpf restart {}",
        shell_path(dir)
    )
}

/// The line of a checkpoint (`-v`), without prefix.
pub fn checkpoint_line(done: &CheckpointDone) -> String {
    format!(
        "checkpoint {} ({}): {} pages, {} stored, frozen {}, {} in all",
        done.id,
        done.kind,
        done.pages,
        bytes(done.bytes_stored),
        duration(Duration::from_micros(done.freeze_us)),
        duration(Duration::from_micros(done.elapsed_us)),
    )
}

/// The line of a restart about what no system call gives back, without prefix.
pub fn cpu_time_line(before: Duration) -> String {
    format!(
        "CPU time counts from 0 again (no system call sets it); at the checkpoint it was {}",
        duration(before)
    )
}

/// The line at an abnormal end, without prefix. `last` is the newest checkpoint and its age.
pub fn end_line(last: Option<(u64, Duration)>, dir: &Path) -> String {
    match last {
        Some((id, age)) => {
            format!(
                "last checkpoint {id}, {} ago; restart with: ckptbpf restart {}",
                duration(age),
                shell_path(dir)
            )
        }
        None => "ended before its first checkpoint; there is nothing to restart from".into(),
    }
}

/// The line after a stop by checkpoint (status 85), without prefix.
pub fn checkpointed_line(id: u64, dir: &Path) -> String {
    format!("stopped with checkpoint {id}; go on with: ckptbpf restart {}", shell_path(dir))
}

/// A duration for people: two figures are enough.
///
/// ```
/// use ckptbpf::job::terminal::duration;
/// use std::time::Duration;
/// assert_eq!(duration(Duration::from_secs(10)), "10 s");
/// assert_eq!(duration(Duration::from_micros(812)), "0.8 ms");
/// assert_eq!(duration(Duration::from_secs(5400)), "90 min");
/// ```
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let round = |value: f64| {
        let text = if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
    };
    if seconds < 1.0 {
        format!("{} ms", round(seconds * 1e3))
    } else if seconds < 120.0 {
        format!("{} s", round(seconds))
    } else if seconds < 7200.0 {
        format!("{} min", round(seconds / 60.0))
    } else {
        format!("{} h", round(seconds / 3600.0))
    }
}

/// A number of bytes for people, in powers of 1024.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // A display of two or three figures: the precision of f64 is more than enough.
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if value < 10.0 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

/// A path as one can paste it: quoted where a shell would split or expand it.
pub fn shell_path(path: &Path) -> String {
    let text = path.display().to_string();
    let text =
        text.strip_prefix("./").filter(|rest| !rest.is_empty() && !rest.starts_with('-')).unwrap_or(&text);
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// Whether the line at the start is wanted.
pub fn wants_start_line(verbose: u8) -> bool {
    verbose > 0 || std::io::stderr().is_terminal()
}

/// Says a line of ckptbpf's own. Nobody listening (a closed pipe) is no reason to fail.
pub fn say(line: &str) {
    let mut whole = String::with_capacity(line.len() + 10);
    for part in line.lines() {
        whole.push_str("ckptbpf: ");
        whole.push_str(part);
        whole.push('\n');
    }
    let _ = std::io::stderr().write_all(whole.as_bytes());
}

struct Terminal {
    verbose: u8,
    said: Mutex<HashSet<String>>,
}

/// What of the log is shown at a verbosity: ckptbpf's own lines one step earlier than those of libraries and eBPF.
fn shown(verbose: u8, level: Level, target: &str) -> bool {
    let own = target == "ckptbpf" || target.starts_with("ckptbpf::");
    let limit = match (verbose, own) {
        (0, true) | (0 | 1, false) => LevelFilter::Warn,
        (1, true) => LevelFilter::Info,
        (2, true) => LevelFilter::Debug,
        (2, false) => LevelFilter::Info,
        _ => LevelFilter::Trace,
    };
    level <= limit
}

impl Log for Terminal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        shown(self.verbose, metadata.level(), metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = record.args().to_string();
        if record.level() == Level::Warn {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() >= WARNINGS || !said.insert(line.clone()) {
                return;
            }
        }
        say(&line);
    }

    fn flush(&self) {}
}

/// Sends the `log` macros to standard error; the first call in a process counts.
pub fn init_log(verbose: u8) {
    let terminal = Terminal { verbose, said: Mutex::default() };
    if log::set_boxed_logger(Box::new(terminal)).is_ok() {
        log::set_max_level(match verbose {
            0 => LevelFilter::Warn,
            1 => LevelFilter::Info,
            2 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_at_the_start_is_the_contracts() {
        let dir = Path::new("./ckpt_count");
        let start = Start {
            program: "./count",
            pid: 4711,
            user: "alice",
            interval: Some(Duration::from_secs(10)),
            dir,
        };
        assert_eq!(
            start_line(&start),
            "./count (pid 4711, user alice): checkpoint every 10 s in ./ckpt_count; restart: ckptbpf restart ckpt_count"
        );
        let on_request = start_line(&Start { interval: None, ..start });
        assert!(on_request.contains("checkpoint on request (ckptbpf checkpoint 4711) in"), "{on_request}");
    }

    #[test]
    fn the_line_at_the_end_names_checkpoint_age_and_way_back() {
        let line = end_line(Some((17, Duration::from_secs(3))), Path::new("a b"));
        assert_eq!(line, "last checkpoint 17, 3 s ago; restart with: ckptbpf restart 'a b'");
        assert!(end_line(None, Path::new("d")).contains("nothing to restart"));
        assert!(checkpointed_line(3, Path::new("-d")).contains("checkpoint 3"));
    }

    #[test]
    fn a_checkpoints_line_has_its_numbers() {
        let done = CheckpointDone {
            id: 3,
            kind: "delta".into(),
            pages: 12,
            bytes_stored: 5 << 20,
            ..Default::default()
        };
        let line = checkpoint_line(&CheckpointDone { freeze_us: 1200, elapsed_us: 40_000, ..done });
        assert_eq!(line, "checkpoint 3 (delta): 12 pages, 5.0 MiB stored, frozen 1.2 ms, 40 ms in all");
    }

    #[test]
    fn numbers_are_rounded_for_people() {
        assert_eq!(duration(Duration::from_millis(2500)), "2.5 s");
        assert_eq!(duration(Duration::ZERO), "0 ms");
        assert_eq!(duration(Duration::from_secs(7200)), "2 h");
        assert_eq!(
            (bytes(1023), bytes(1024), bytes(u64::MAX)),
            ("1023 B".into(), "1.0 KiB".into(), "16384 PiB".into())
        );
    }

    #[test]
    fn verbosity_shows_more_step_by_step() {
        let seen = |verbose, level, target| shown(verbose, level, target);
        assert!(seen(0, Level::Warn, "ckptbpf::job") && !seen(0, Level::Info, "ckptbpf::job"));
        assert!(seen(1, Level::Info, "ckptbpf") && !seen(1, Level::Info, "ckpt_ebpf"));
        assert!(seen(2, Level::Info, "ckpt_ebpf") && seen(2, Level::Debug, "ckptbpf::freeze"));
        assert!(seen(3, Level::Trace, "aya"));
    }
}

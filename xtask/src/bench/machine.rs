//! The machine that was measured on; nothing that names it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cmd;

/// As it is described beside the numbers.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub processor: String,
    pub processors: usize,
    pub is_virtual: bool,
    pub kernel: String,
    pub memory_bytes: u64,
    /// Whether memory is in huge pages that did not ask: `always`, `madvise` or `never`.
    pub huge_pages: String,
    /// Of the images.
    pub file_system: String,
}

impl Machine {
    /// With images in `folder`.
    ///
    /// # Errors
    /// /proc does not tell.
    pub fn here(folder: &Path) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        let file_system = cmd::output(Command::new("stat").args(["-f", "-c", "%T"]).arg(folder))?;
        Ok(Self {
            processor: of_cpuinfo(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            processors: thread::available_parallelism().map_or(1, usize::from),
            is_virtual: of_cpuinfo(&cpuinfo, "flags").is_some_and(|flags| has_word(flags, "hypervisor")),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").context("osrelease")?.trim().to_owned(),
            memory_bytes: memory("MemTotal")?,
            huge_pages: huge_pages.ok().as_deref().and_then(chosen).unwrap_or("unknown").to_owned(),
            file_system: file_system.trim().to_owned(),
        })
    }
}

/// A field of /proc/meminfo, in bytes.
///
/// # Errors
/// It is not there.
pub fn memory(field: &str) -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kib(&meminfo, field).map(|kib| kib << 10).with_context(|| format!("no {field} in /proc/meminfo"))
}

/// The number of a line `FIELD: NUMBER kB`.
pub fn kib(text: &str, field: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn of_cpuinfo<'t>(text: &'t str, field: &str) -> Option<&'t str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim())
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|one| one == word)
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let meminfo = "MemTotal:       24684100 kB\nMemFree:  12 kB\nMemAvailable:       1024 kB\nHugePages_Total:  0\n";
        assert_eq!(kib(meminfo, "MemAvailable"), Some(1024));
        assert_eq!(kib(meminfo, "HugePages_Total"), None);
        assert_eq!(kib(meminfo, "Mem"), None);
        let cpuinfo = "processor\t: 0\nmodel name\t: A Processor @ 2.0GHz\nflags\t\t: fpu hypervisor lm\n";
        assert_eq!(of_cpuinfo(cpuinfo, "model name"), Some("A Processor @ 2.0GHz"));
        assert!(of_cpuinfo(cpuinfo, "flags").is_some_and(|flags| has_word(flags, "hypervisor")));
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }
}

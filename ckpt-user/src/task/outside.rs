//! Process ids as they are known outside, for a supervisor that works in a pid namespace of its program's own.
//!
//! What is written for others to read (job.json, the registry, what is said) names processes by the ids of the
//! namespace that ckptbpf was started in. Its /proc, opened before the private one took its place, tells them: it
//! shows the process behind a pidfd under the id of its own namespace (pidfd_open(2), fdinfo).

use super::proc::{self, Stat};
use crate::sys::pidfd;
use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;

/// The /proc of the namespace that ckptbpf was started in; none where that is its own.
static PROC: OnceLock<File> = OnceLock::new();

/// Notes /proc as it is now: the namespace that it shows is the one outside. The first call counts.
pub fn note_proc() -> io::Result<()> {
    let proc = File::open("/proc")?;
    let _ = PROC.set(proc);
    Ok(())
}

/// Whether this process works in a program's own pid namespace.
pub fn is_noted() -> bool {
    PROC.get().is_some()
}

/// Reads a file of /proc that shows processes under the ids by which others know them; `name` is its path in there.
pub fn read(name: &str) -> io::Result<Vec<u8>> {
    let Some(proc) = PROC.get() else { return fs::read(Path::new("/proc").join(name)) };
    // By descriptor: while a namespace is entered, the /proc that has its place does not show this process.
    let file = openat(proc, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text)?;
    Ok(text)
}

/// The numeric names in a directory of it.
pub fn list(name: &str) -> io::Result<Vec<i32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = match PROC.get() {
        Some(proc) => Dir::openat(proc, name, flags, Mode::empty())?,
        None => Dir::open(&Path::new("/proc").join(name), flags, Mode::empty())?,
    };
    let names = dir.iter().filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok());
    Ok(names.collect())
}

fn text(name: &str) -> io::Result<String> {
    read(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a process goes on ([`proc::is_alive`]); its id as there.
pub fn is_alive(pid: i32, stat: &Stat) -> bool {
    proc::is_alive(pid, stat, list, text)
}

/// Whether it has ended, or is about to ([`proc::is_dying`]).
pub fn is_dying(pid: i32, stat: &Stat) -> bool {
    proc::is_dying(pid, stat, list, text)
}

/// The id by which the process that is `pid` here is known outside.
///
/// # Errors
/// ESRCH when there is no such process.
pub fn known_as(pid: i32) -> io::Result<i32> {
    if !is_noted() {
        return Ok(pid);
    }
    let pidfd = pidfd::open(Pid::from_raw(pid))?;
    let info = read(&format!("self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let info = String::from_utf8_lossy(&info);
    let shown = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    // 0 or -1: not visible there, or ended.
    shown.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

//! /proc/PID by descriptor: what it shows is of that very process, or an error, whatever /proc is mounted where we are then.

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

/// No file of these is longer.
const LIMIT: u64 = 64 << 10;
/// But for those that have a line for each mapping.
const LONG: u64 = 32 << 20;

/// The directory of one process.
#[derive(Debug)]
pub struct ProcFd(OwnedFd);

impl ProcFd {
    /// # Errors
    /// There is no such process.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}"))?.into()))
    }

    /// # Errors
    /// ESRCH once the process is gone.
    pub fn text(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open(name)?.take(LIMIT).read_to_string(&mut text)?;
        Ok(text)
    }

    /// The same with a line for each mapping; names in it may be anything.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn long_text(&self, name: &str) -> io::Result<String> {
        let mut text = Vec::new();
        self.open(name)?.take(LONG).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// # Errors
    /// As [`Self::text`].
    pub fn open(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    /// # Errors
    /// As [`Self::text`].
    pub fn link(&self, name: &str) -> io::Result<OsString> {
        Ok(readlinkat(&self.0, name)?)
    }

    /// Device and inode of its root directory.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn root(&self) -> io::Result<(u64, u64)> {
        let found = fstatat(&self.0, "root", AtFlags::empty())?;
        Ok((found.st_dev, found.st_ino))
    }
}

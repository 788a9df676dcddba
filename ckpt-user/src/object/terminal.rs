//! The controlling terminal of the launcher's session, opened again as the restarter's.

use super::{Object, Seen};
use crate::task::proc::ProcDir;
use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TerminalRecord {
    /// As it was opened: /dev/tty, /dev/pts/N.
    #[prost(string, tag = "1")]
    pub name: String,
}

const TTY: &str = "/dev/tty";

/// The record, if this is the controlling terminal of its process.
pub fn capture(seen: &Seen, metadata: &Metadata) -> Option<Object> {
    let is_alias = seen.target == Path::new(TTY);
    let own = ProcDir::process(seen.pid).stat().ok().map(|s| s.terminal())?;
    (own != 0 && (is_alias || metadata.rdev() == own))
        .then(|| Object::Terminal(TerminalRecord { name: seen.target.display().to_string() }))
}

pub fn rebuild(record: &TerminalRecord, flags: u32) -> io::Result<OwnedFd> {
    let access = flags as i32 & libc::O_ACCMODE;
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags as i32 & (libc::O_NONBLOCK | libc::O_APPEND) | libc::O_NOCTTY)
        .open(TTY)
        .map(Into::into)
        .map_err(|e| {
            let why = "the program has its terminal open, and there is none here: restart it from a terminal";
            io::Error::new(e.kind(), format!("{}: {why} ({e})", record.name))
        })
}

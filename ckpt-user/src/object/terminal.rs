//! The controlling terminal of the launcher's session, opened again as the restarter's, and its modes.

use super::{Object, Seen};
use crate::task::proc::ProcDir;
use nix::sys::termios::{self, InputFlags, LocalFlags, OutputFlags, SetArg};
use nix::unistd::{Pid, tcsetpgrp};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TerminalRecord {
    /// As it was opened: /dev/tty, /dev/pts/N.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// What tcsetattr(3) sets, but for what belongs to the line itself (speed, character size): the restarter's stays.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Modes {
    #[prost(uint32, tag = "1")]
    pub input: u32,
    #[prost(uint32, tag = "2")]
    pub output: u32,
    #[prost(uint32, tag = "3")]
    pub local: u32,
    /// `c_cc`, in the C library's order.
    #[prost(bytes = "vec", tag = "4")]
    pub characters: Vec<u8>,
}

const TTY: &str = "/dev/tty";

/// The terminal of a front, as its worker has it, which is in another session.
static FRONTS: OnceLock<File> = OnceLock::new();

/// Notes it; the first call counts.
pub fn note(terminal: OwnedFd) {
    FRONTS.get_or_init(|| terminal.into());
}

/// The terminal of whoever started ckptbpf.
///
/// # Errors
/// ENXIO when there is none.
pub fn open() -> io::Result<File> {
    FRONTS.get().map_or_else(|| opened(libc::O_RDWR), File::try_clone)
}

/// The terminal of this session, as a description of its own with these flags (open(2)).
///
/// # Errors
/// ENXIO when there is none.
pub fn opened(flags: i32) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & (libc::O_NONBLOCK | libc::O_APPEND) | libc::O_NOCTTY)
        .open(TTY)
}

/// Makes a process group of this session that of its terminal in the foreground. Only where SIGTTOU is blocked, which stops whoever
/// does this from the background (tcsetpgrp(3)).
///
/// # Errors
/// ENXIO when there is none; EPERM of a group that is none of the session's.
pub fn give(group: Pid) -> io::Result<()> {
    Ok(tcsetpgrp(opened(libc::O_RDWR)?, group)?)
}

impl Modes {
    /// Those of the terminal as it is.
    pub fn read() -> io::Result<Self> {
        let all = termios::tcgetattr(open()?)?;
        Ok(Self {
            input: all.input_flags.bits(),
            output: all.output_flags.bits(),
            local: all.local_flags.bits(),
            characters: all.control_chars.to_vec(),
        })
    }

    /// Gives them to `terminal`.
    pub fn set(&self, terminal: &File) -> io::Result<()> {
        let mut all = termios::tcgetattr(terminal)?;
        all.input_flags = InputFlags::from_bits_retain(self.input);
        all.output_flags = OutputFlags::from_bits_retain(self.output);
        all.local_flags = LocalFlags::from_bits_retain(self.local);
        all.control_chars.iter_mut().zip(&self.characters).for_each(|(to, from)| *to = *from);
        Ok(termios::tcsetattr(terminal, SetArg::TCSANOW, &all)?)
    }
}

/// The record, if this is the controlling terminal of its process.
pub fn capture(seen: &Seen, metadata: &Metadata) -> Option<Object> {
    let is_alias = seen.target == Path::new(TTY);
    let own = ProcDir::process(seen.pid).stat().ok().map(|s| s.terminal())?;
    (own != 0 && (is_alias || metadata.rdev() == own))
        .then(|| Object::Terminal(TerminalRecord { name: seen.target.display().to_string() }))
}

/// `opened` as the function of that name, by somebody of the program's session.
pub fn rebuild(
    record: &TerminalRecord,
    flags: u32,
    opened: &dyn Fn(i32) -> io::Result<File>,
) -> io::Result<OwnedFd> {
    opened(flags.cast_signed()).map(Into::into).map_err(|e| {
        let why = "the program has its terminal open, and there is none here: restart it from a terminal";
        io::Error::new(e.kind(), format!("{}: {why} ({e})", record.name))
    })
}

//! signalfd(2): the signals it gives; those that wait belong to the process.

use super::{Object, Seen};
use crate::sys::signalfd;
use std::io;
use std::os::fd::OwnedFd;

#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SignalRecord {
    /// Bit n−1 is signal n.
    #[prost(fixed64, tag = "1")]
    pub mask: u64,
}

/// # Errors
/// The reason why it cannot be saved.
pub fn capture(seen: &Seen) -> Result<Object, String> {
    let mask = seen.info.lines().find_map(|l| l.strip_prefix("sigmask:")).map(str::trim);
    let mask = mask.and_then(|v| u64::from_str_radix(v, 16).ok());
    let mask = mask.ok_or("this kernel does not show the signals of a signalfd")?;
    Ok(Object::Signal(SignalRecord { mask }))
}

pub fn rebuild(record: SignalRecord, flags: u32) -> io::Result<OwnedFd> {
    signalfd::create(record.mask, libc::SFD_CLOEXEC | flags as i32 & libc::SFD_NONBLOCK)
}

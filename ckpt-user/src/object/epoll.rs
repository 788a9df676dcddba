//! epoll_create(2): what it watches, under which numbers.
//!
//! An entry is a pair of number and description; the number may since have been closed or given to another file.
//! So a restart adds each entry in the skeleton while all numbers are still free: the description is put under the
//! entry's number, added, and what the process has there afterwards is moved over it.
//!
//! Not kept: that an edge-triggered entry had already been reported (it is reported once more), and that a spent
//! EPOLLONESHOT entry says nothing of errors and hang-ups.

use super::{Object, Seen};
use crate::sys::inject::Call;
use crate::sys::pidfd;
use crate::sys::remote::Remote;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use std::cmp::Ordering;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct EpollRecord {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
}

/// One watched description.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Entry {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// Index into the image's descriptions.
    #[prost(uint32, tag = "2")]
    pub description: u32,
    #[prost(uint32, tag = "3")]
    pub events: u32,
    #[prost(fixed64, tag = "4")]
    pub data: u64,
}

/// # Errors
/// The reason why it cannot be saved: something watched that no process of the program has open any more.
pub fn capture(seen: &Seen, all: &[(OwnedFd, &Seen)]) -> Result<Object, String> {
    let mut entries: Vec<Entry> = Vec::new();
    for (number, events, data) in seen.info.lines().filter_map(parse) {
        // Several entries of one number (of descriptions that had it one after another) are told apart by order.
        let order = entries.iter().filter(|e| e.number == number).count() as u32;
        let is_target = |other: &Seen| {
            pidfd::compare_watched((other.pid, other.number), (seen.pid, seen.number), number, order)
                .map(|o| o == Ordering::Equal)
        };
        let likely = all.iter().position(|(_, o)| o.number == number as i32 && is_target(o).unwrap_or(false));
        let index = match likely {
            Some(index) => Some(index),
            None => {
                let mut found = None;
                for (index, (_, other)) in all.iter().enumerate() {
                    if is_target(other).map_err(|e| format!("cannot tell what it watches: {e}"))? {
                        found = Some(index);
                        break;
                    }
                }
                found
            }
        };
        let index = index.ok_or_else(|| {
            format!("it watches descriptor {number}, which the program itself no longer has open")
        })?;
        entries.push(Entry { number, description: index as u32, events, data });
    }
    Ok(Object::Epoll(EpollRecord { entries }))
}

/// `tfd:       13 events:       19 data: 1122334455667788  pos:0 ino:1 sdev:2` (fs/eventpoll.c, all but tfd in
/// hexadecimal).
pub(crate) fn parse(line: &str) -> Option<(u32, u32, u64)> {
    let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let events = u32::from_str_radix(words.nth(1)?, 16).ok()?;
    let data = u64::from_str_radix(words.nth(1)?, 16).ok()?;
    Some((number, events, data))
}

/// An epoll that watches nothing yet.
pub fn rebuild() -> io::Result<OwnedFd> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.0)
}

/// Adds the entries to `epoll`; all descriptions are open in the skeleton, above any number that is used here.
pub fn watch(
    record: &EpollRecord,
    epoll: &OwnedFd,
    descriptions: &[OwnedFd],
    remote: &mut Remote,
) -> io::Result<()> {
    /// Entries whose events fit the skeleton's room for data.
    const AT_ONCE: usize = 1000;
    for entries in record.entries.chunks(AT_ONCE) {
        let mut calls = Vec::with_capacity(entries.len() * 2);
        for entry in entries {
            let target = descriptions.get(entry.description as usize).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "an epoll watches nothing in the image")
            })?;
            let number = u64::from(entry.number);
            calls.push(Call::new(
                libc::SYS_dup3,
                &[target.as_raw_fd() as u64, number, libc::O_CLOEXEC as u64],
            ));
            // struct epoll_event is packed on x86-64.
            let event = [&entry.events.to_le_bytes()[..], &entry.data.to_le_bytes()].concat();
            let event = remote.data(&event)?;
            let add = libc::EPOLL_CTL_ADD as u64;
            calls.push(Call::new(libc::SYS_epoll_ctl, &[epoll.as_raw_fd() as u64, add, number, event]));
        }
        if let Some(error) = remote.run(&calls)?.into_iter().find(|&r| r < 0) {
            return Err(io::Error::from_raw_os_error(-error as i32));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read() {
        let line = "tfd:       13 events: 80000019 data: 1122334455667788  pos:0 ino:c1 sdev:f";
        assert_eq!(parse(line), Some((13, 0x8000_0019, 0x1122_3344_5566_7788)));
        assert_eq!(parse("pos:\t0"), None);
    }
}

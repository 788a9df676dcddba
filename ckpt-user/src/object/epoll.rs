//! epoll_create(2): what it watches, under which numbers.
//!
//! An entry is a pair of number and description; the number may since have been closed or given to another file.
//! So a restart adds each entry in the skeleton while all numbers are still free: the description is put under the
//! entry's number, added, and what the process has there afterwards is moved over it.
//!
//! Not kept: that an edge-triggered entry had already been reported (it is reported once more), and that a spent
//! EPOLLONESHOT entry says nothing of errors and hang-ups.

use super::{Description, Object, Seen, Stage, pidfd as process_fd, proc_file};
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
pub fn capture(seen: &Seen, all: &[(OwnedFd, Seen)]) -> Result<Object, String> {
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
        let (target, other) = &all[index];
        if other.flags & process_fd::THREAD != 0 || proc_file::is_one(other, target) {
            let by_number =
                pidfd::compare(seen.pid, other.pid, pidfd::Kind::File, number as i32, other.number);
            if !by_number.is_ok_and(|o| o == Ordering::Equal) {
                let name = other.target.display();
                return Err(format!("it watches descriptor {number} ({name}), which now has another number"));
            }
        }
        entries.push(Entry { number, description: index as u32, events, data });
    }
    Ok(Object::Epoll(EpollRecord { entries }))
}

/// `tfd:       13 events:       19 data: 1122334455667788  pos:0 ino:1 sdev:2` (fs/eventpoll.c, all but tfd in
/// hexadecimal).
fn parse(line: &str) -> Option<(u32, u32, u64)> {
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

/// Adds an entry to the epoll `epoll`; what it watches is open under its number.
pub fn add(entry: &Entry, epoll: u64, remote: &mut Remote) -> io::Result<()> {
    let call = control(entry, epoll, remote)?;
    remote.run_all(&[call])
}

fn control(entry: &Entry, epoll: u64, remote: &mut Remote) -> io::Result<Call> {
    // struct epoll_event is packed on x86-64.
    let event = [&entry.events.to_le_bytes()[..], &entry.data.to_le_bytes()].concat();
    let event = remote.data(&event)?;
    let number = u64::from(entry.number);
    Ok(Call::new(libc::SYS_epoll_ctl, &[epoll, libc::EPOLL_CTL_ADD as u64, number, event]))
}

/// Adds the entries to `epoll`, but for what comes last; all descriptions are open in the skeleton, above any number that
/// is used here.
pub fn watch(
    record: &EpollRecord,
    epoll: &OwnedFd,
    (descriptions, all): (&[OwnedFd], &[Description]),
    remote: &mut Remote,
) -> io::Result<()> {
    /// Entries whose events fit the skeleton's room for data.
    const AT_ONCE: usize = 1000;
    for entries in record.entries.chunks(AT_ONCE) {
        let mut calls = Vec::with_capacity(entries.len() * 2);
        for entry in entries {
            let (target, description) = descriptions
                .get(entry.description as usize)
                .zip(all.get(entry.description as usize))
                .ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "an epoll watches nothing in the image")
                })?;
            if description.stage() == Stage::Last {
                continue;
            }
            let number = u64::from(entry.number);
            calls.push(Call::new(
                libc::SYS_dup3,
                &[target.as_raw_fd() as u64, number, libc::O_CLOEXEC as u64],
            ));
            calls.push(control(entry, epoll.as_raw_fd() as u64, remote)?);
        }
        remote.run_all(&calls)?;
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

//! epoll_create(2): what it watches, under which numbers.
//!
//! An entry is a pair of number and description; the number may since have been closed or given to another file.
//! So a restart adds each entry in the skeleton while all numbers are still free: the description is put under the
//! entry's number, added, and what the process has there afterwards is moved over it.
//!
//! A spent entry (EPOLLONESHOT) says nothing more, of errors and hang-ups neither; one that is added or changed says at least
//! that. So it is added to say more, and spent once more, before any other is there.
//!
//! Not kept: that an edge-triggered entry had already been reported (it is reported once more), and that a spent entry of what
//! has nothing to say at the restart says nothing of errors and hang-ups.

use super::{Description, Object, Seen, Stage, pidfd as process_fd, proc_file};
use crate::sys::inject::Call;
use crate::sys::pidfd;
use crate::sys::remote::Remote;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use std::cmp::Ordering;
use std::collections::HashSet;
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

/// Adds an entry to the epoll `epoll`; what it watches is open under its number.
pub fn add(entry: &Entry, epoll: u64, remote: &mut Remote) -> io::Result<()> {
    let call = control(libc::EPOLL_CTL_ADD, entry, entry.events, epoll, remote)?;
    remote.run_all(&[call])
}

fn control(how: i32, entry: &Entry, events: u32, epoll: u64, remote: &mut Remote) -> io::Result<Call> {
    // struct epoll_event is packed on x86-64.
    let event = [&events.to_le_bytes()[..], &entry.data.to_le_bytes()].concat();
    let event = remote.data(&event)?;
    Ok(Call::new(libc::SYS_epoll_ctl, &[epoll, how as u64, u64::from(entry.number), event]))
}

/// What an entry watches.
pub struct Target<'a> {
    /// Open in the skeleton, above any number that is used here.
    pub fd: &'a OwnedFd,
    pub description: &'a Description,
    /// The standard stream of this restart that it is.
    pub stream: Option<u32>,
}

/// Adds the entries to `epoll`, but for what comes last.
///
/// # Errors
/// Names a standard stream that cannot be watched.
pub fn watch<'a>(
    record: &EpollRecord,
    epoll: &OwnedFd,
    target: impl Fn(&Entry) -> Option<Target<'a>>,
    remote: &mut Remote,
) -> io::Result<()> {
    let mut entries = Vec::with_capacity(record.entries.len());
    for entry in &record.entries {
        let target = target(entry).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "an epoll watches nothing in the image")
        })?;
        if target.description.stage() != Stage::Last {
            entries.push((entry, target));
        }
    }
    let (spent, others): (Vec<_>, Vec<_>) = entries.iter().partition(|(entry, _)| is_spent(entry.events));
    let number = epoll.as_raw_fd() as u64;
    if !spent.is_empty() {
        apply(libc::EPOLL_CTL_ADD, &spent, TALKATIVE, number, remote)?;
        let quiet = spend(epoll)?;
        let quiet: Vec<_> = spent.into_iter().filter(|(e, _)| quiet.contains(&(e.number, e.data))).collect();
        apply(libc::EPOLL_CTL_MOD, &quiet, 0, number, remote)?;
    }
    apply(libc::EPOLL_CTL_ADD, &others, 0, number, remote)
}

/// What the kernel leaves of an entry's events when it is spent: EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET.
const LEFT: u32 = 0xf000_0000;
/// What hardly anything has nothing of to say.
const TALKATIVE: u32 = (libc::EPOLLIN | libc::EPOLLOUT) as u32;

fn is_spent(events: u32) -> bool {
    events & !LEFT == 0 && events & libc::EPOLLONESHOT as u32 != 0
}

/// Has the epoll, in which all entries are to be spent, say what it can; numbers and data of those that it says nothing of.
fn spend(epoll: &OwnedFd) -> io::Result<HashSet<(u32, u64)>> {
    let own = Epoll(epoll.try_clone()?);
    let mut events = [EpollEvent::empty(); 256];
    while own.wait(&mut events, EpollTimeout::ZERO)? > 0 {}
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd()))?;
    let left = info.lines().filter_map(parse).filter(|&(_, events, _)| !is_spent(events));
    Ok(left.map(|(number, _, data)| (number, data)).collect())
}

/// One call of epoll_ctl(2) for each entry, with `more` than its events.
fn apply(
    how: i32,
    entries: &[&(&Entry, Target<'_>)],
    more: u32,
    epoll: u64,
    remote: &mut Remote,
) -> io::Result<()> {
    /// Entries whose events fit the skeleton's room for data.
    const AT_ONCE: usize = 1000;
    for entries in entries.chunks(AT_ONCE) {
        let mut calls = Vec::with_capacity(entries.len() * 2);
        for (entry, target) in entries {
            let number = u64::from(entry.number);
            calls.push(Call::new(
                libc::SYS_dup3,
                &[target.fd.as_raw_fd() as u64, number, libc::O_CLOEXEC as u64],
            ));
            calls.push(control(how, entry, entry.events | more, epoll, remote)?);
        }
        let results = remote.run(&calls)?;
        if let Some(at) = results.iter().position(|result| (-4095..0).contains(result)) {
            let (entry, target) = entries[at / 2];
            return Err(refused(entry, target, &io::Error::from_raw_os_error(-results[at] as i32)));
        }
    }
    Ok(())
}

fn refused(entry: &Entry, target: &Target<'_>, error: &io::Error) -> io::Error {
    let Some(stream) = target.stream else {
        let number = entry.number;
        return io::Error::new(error.kind(), format!("descriptor {number}, which an epoll watches: {error}"));
    };
    let link = std::fs::read_link(format!("/proc/self/fd/{}", target.fd.as_raw_fd())).unwrap_or_default();
    let what = format!(
        "the program watches standard stream {stream} (epoll), and that of this restart ({}) cannot be watched: restart it \
         with a terminal, a pipe or a socket there ({error})",
        link.display()
    );
    io::Error::new(error.kind(), what)
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

//! Pairs of Unix sockets (socketpair(2)) whose two ends the program has, with what waits in them.
//!
//! The kernel's socket diagnosis (sock_diag(7)) says which socket is whose peer. What waits is peeked at with SO_PEEK_OFF,
//! message by message, and sent again by the other end.
//!
//! Not kept: SO_PEERCRED, which names ckptbpf after a restart.

use super::{Object, Seen};
use crate::sys::socket::{self, Diagnosis};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// One end; records that name each other as peers belong together.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SocketRecord {
    /// Inode numbers: identities within one image. A peer that is closed everywhere is 0.
    #[prost(uint64, tag = "1")]
    pub socket: u64,
    #[prost(uint64, tag = "2")]
    pub peer: u64,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    #[prost(int32, tag = "3")]
    pub kind: i32,
    /// What waits to be read: messages, or the bytes of a stream in parts.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub waiting: Vec<Vec<u8>>,
    /// 1: it receives no more; 2: it sends no more.
    #[prost(uint32, tag = "5")]
    pub shut: u32,
    /// Values as getsockopt(2) gives them.
    #[prost(message, repeated, tag = "6")]
    pub options: Vec<SocketOption>,
}

/// An option of level SOL_SOCKET.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SocketOption {
    /// SO_*.
    #[prost(int32, tag = "1")]
    pub name: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Options that are kept. Buffer sizes are set by their privileged names, which know no limit.
const KEPT: [i32; 8] = [
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_SNDTIMEO,
    libc::SO_RCVTIMEO,
    libc::SO_RCVLOWAT,
    libc::SO_PASSCRED,
    libc::SO_PRIORITY,
    libc::SO_PEEK_OFF,
];

/// # Errors
/// The reason why a restart could not make it again.
pub fn capture(
    seen: &Seen,
    fd: &OwnedFd,
    metadata: &Metadata,
    all: &[(OwnedFd, &Seen)],
) -> Result<Object, String> {
    let said = |e: io::Error| e.to_string();
    if socket::integer(fd, libc::SO_DOMAIN).map_err(said)? != libc::AF_UNIX {
        return Err(seen.unknown());
    }
    let kind = socket::integer(fd, libc::SO_TYPE).map_err(said)?;
    let Diagnosis { peer, shut, named } = socket::diagnose(metadata.ino() as u32).map_err(said)?;
    if named {
        return Err("sockets with an address cannot be saved yet".to_owned());
    }
    let has_peer =
        |(_, other): &&(OwnedFd, &Seen)| other.target.to_str() == Some(&*format!("socket:[{peer}]"));
    let closed = peer == 0;
    let connected = kind == libc::SOCK_DGRAM || shut == BOTH;
    if closed && !connected {
        return Err("sockets that are not one of a pair cannot be saved yet".to_owned());
    }
    let other = all.iter().find(has_peer);
    if !closed && other.is_none() {
        return Err(
            "its other end is held by a process outside the program, or on its way in a message".to_owned()
        );
    }
    if has_error(fd) {
        return Err("an error waits in it, which cannot be saved".to_owned());
    }
    // Messages name their sender if either end asks for it.
    let credentials = |fd| socket::integer(fd, libc::SO_PASSCRED).map(|on| on != 0).map_err(said);
    let named = credentials(fd)? || other.map_or(Ok(false), |(fd, _)| credentials(fd))?;
    if named && socket::waiting(fd).map_err(said)? > 0 {
        return Err(
            "messages that name their sender (SO_PASSCRED) wait in it; these cannot be saved yet".to_owned()
        );
    }
    let option = |&name: &i32| Ok(SocketOption { name, value: socket::option(fd, name)? });
    let waiting = waiting(fd, kind, shut)?;
    let options = KEPT.iter().map(option).collect::<io::Result<_>>().map_err(said)?;
    Ok(Object::Socket(SocketRecord {
        socket: metadata.ino(),
        peer: u64::from(peer),
        kind,
        waiting,
        shut,
        options,
    }))
}

const BOTH: u32 = 3;

fn has_error(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let asked = poll(&mut fds, PollTimeout::ZERO);
    asked.is_err() || fds[0].revents().is_none_or(|r| r.contains(PollFlags::POLLERR))
}

/// Everything that waits to be read, left where it is.
fn waiting(fd: &OwnedFd, kind: i32, shut: u32) -> Result<Vec<Vec<u8>>, String> {
    let said = |e: io::Error| e.to_string();
    let before = socket::option(fd, libc::SO_PEEK_OFF).map_err(said)?;
    socket::set_option(fd, libc::SO_PEEK_OFF, &0i32.to_ne_bytes()).map_err(said)?;
    let found = peek_all(fd, kind, shut);
    socket::set_option(fd, libc::SO_PEEK_OFF, &before).map_err(said)?;
    found
}

fn peek_all(fd: &OwnedFd, kind: i32, shut: u32) -> Result<Vec<Vec<u8>>, String> {
    let said = |e: io::Error| e.to_string();
    let mut buffer = vec![0; 1 << 20];
    let mut found: Vec<Vec<u8>> = Vec::new();
    loop {
        match socket::peek(fd, &mut buffer) {
            // The other end sends no more.
            Ok(got) if got.len == 0 && kind != libc::SOCK_DGRAM && shut & 1 != 0 => break,
            // One of no bytes is peeked at again and again.
            Ok(got) if got.len == 0 => {
                return Err("an empty message waits in it, which cannot be saved yet".to_owned());
            }
            Ok(got) if got.carries => {
                return Err(
                    "descriptors are on their way in it (SCM_RIGHTS); these cannot be saved yet".to_owned()
                );
            }
            Ok(got) if got.cut => return Err("a message of more than 1 MiB waits in it".to_owned()),
            Ok(got) => found.push(buffer[..got.len].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e.to_string()),
        }
    }
    let total: usize = found.iter().map(Vec::len).sum();
    if kind != libc::SOCK_DGRAM && total != socket::waiting(fd).map_err(said)? {
        return Err(
            "data out of band (MSG_OOB) or empty messages wait in it, which cannot be saved yet".to_owned()
        );
    }
    Ok(found)
}

/// The pairs of one restart: the ends whose records have not been met yet.
#[derive(Default)]
pub struct Sockets(HashMap<u64, OwnedFd>);

impl Sockets {
    /// The end that `record` is of; the first call for a pair makes it. It is filled by [`Sockets::finish`].
    pub fn rebuild(&mut self, record: &SocketRecord, flags: u32) -> io::Result<OwnedFd> {
        let own = match self.0.entry(record.socket) {
            Entry::Occupied(made) => made.remove(),
            Entry::Vacant(_) => {
                let kind = SockType::try_from(record.kind)?;
                let flag = SockFlag::SOCK_CLOEXEC;
                let (own, peer) = socketpair(AddressFamily::Unix, kind, None, flag)?;
                if record.peer == 0 {
                    fill(record, &peer)?;
                } else {
                    self.0.insert(record.peer, peer);
                }
                own
            }
        };
        fcntl(&own, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags as i32 & libc::O_NONBLOCK)))?;
        Ok(own)
    }
}

/// Sends what waits in the record's end from its `peer`, however small the peer's buffer is.
fn fill(record: &SocketRecord, peer: &OwnedFd) -> io::Result<()> {
    const ROOM: i32 = 1 << 29;
    let before = socket::option(peer, libc::SO_SNDBUF)?;
    socket::set_option(peer, libc::SO_SNDBUFFORCE, &ROOM.to_ne_bytes())?;
    for message in &record.waiting {
        let mut at = 0;
        while at < message.len() {
            at += send(peer.as_raw_fd(), &message[at..], MsgFlags::MSG_DONTWAIT)?;
        }
    }
    socket::set_option(peer, libc::SO_SNDBUFFORCE, &halved(&before))?;
    Ok(())
}

/// The kernel doubles what it is given as the size of a buffer.
fn halved(value: &[u8]) -> Vec<u8> {
    let size = value.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b));
    (size / 2).to_ne_bytes().to_vec()
}

/// Fills the sockets and gives them their options, when both ends of each are there.
pub fn finish(records: &[(&SocketRecord, &OwnedFd)]) -> io::Result<()> {
    for (record, _) in records {
        if let Some((_, peer)) = records.iter().find(|(other, _)| other.socket == record.peer) {
            fill(record, peer)?;
        }
    }
    for (record, own) in records {
        for option in &record.options {
            match option.name {
                libc::SO_SNDBUF => socket::set_option(own, libc::SO_SNDBUFFORCE, &halved(&option.value))?,
                libc::SO_RCVBUF => socket::set_option(own, libc::SO_RCVBUFFORCE, &halved(&option.value))?,
                // An image may ask for what its owner could not.
                name if !KEPT.contains(&name) => {
                    let what = format!("socket option {name} is none that is kept");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                name => socket::set_option(own, name, &option.value)?,
            }
        }
        // What is shut of one end is shut of the other's other half: the kernel sees to that.
        let how = match record.shut {
            0 => continue,
            1 => Shutdown::Read,
            2 => Shutdown::Write,
            _ => Shutdown::Both,
        };
        shutdown(own.as_raw_fd(), how)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_is_not_kept_is_not_set_either() {
        let (own, _peer) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let option = |name| SocketOption { name, value: 1i32.to_ne_bytes().to_vec() };
        let record = |name| SocketRecord { options: vec![option(name)], ..SocketRecord::default() };
        finish(&[(&record(libc::SO_RCVLOWAT), &own)]).unwrap();
        let refused = finish(&[(&record(libc::SO_MARK), &own)]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert_eq!(socket::integer(&own, libc::SO_MARK).unwrap(), 0);
    }
}

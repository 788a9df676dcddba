//! Connected Unix sockets whose two ends the program has, with what waits in them: pairs (socketpair(2)), and those made by
//! connect(2) and accept(2).
//!
//! The kernel's socket diagnosis (sock_diag(7)) says which socket is whose peer. What waits is peeked at with SO_PEEK_OFF,
//! message by message, with the descriptors that come with it and the name of its sender, and sent again by the other end
//! when the processes of those names are there.
//!
//! Not kept: SO_PEERCRED, which names ckptbpf after a restart.

use super::connection::Connections;
use super::endpoint::{self, polled};
use super::option::{self, Kind, PASSPIDFD, SocketOption, halved};
use super::{Object, Seen, named};
use crate::sys::diag::{self, Diagnosis};
use crate::sys::socket::{self, Peeked};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::unistd::Pid;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

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
    #[prost(message, repeated, tag = "4")]
    pub waiting: Vec<Message>,
    /// 1: it receives no more; 2: it sends no more.
    #[prost(uint32, tag = "5")]
    pub shut: u32,
    /// Values as getsockopt(2) gives them.
    #[prost(message, repeated, tag = "6")]
    pub options: Vec<SocketOption>,
    /// struct sockaddr_un of this end and of the other one, where they have names.
    #[prost(bytes = "vec", tag = "7")]
    pub name: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    pub peer_name: Vec<u8>,
}

impl SocketRecord {
    /// Whether its names are such as a program's socket can have.
    pub fn is_sound(&self) -> bool {
        let named = !self.name.is_empty() || !self.peer_name.is_empty();
        let fits = !named || [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].contains(&self.kind);
        fits && named::is_sound(&self.name) && named::is_sound(&self.peer_name)
    }
}

/// A message, or a part of a stream.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Message {
    #[prost(bytes = "vec", tag = "1")]
    pub bytes: Vec<u8>,
    /// What comes with it: indices into the image's descriptions.
    #[prost(uint32, repeated, tag = "2")]
    pub descriptions: Vec<u32>,
    #[prost(message, optional, tag = "3")]
    pub sender: Option<Sender>,
}

/// Who has sent a message, where it says so (SCM_CREDENTIALS).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Sender {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(uint32, tag = "2")]
    pub uid: u32,
    #[prost(uint32, tag = "3")]
    pub gid: u32,
}

/// # Errors
/// The reason why a restart could not make it again.
pub fn capture(
    seen: &Seen,
    fd: &OwnedFd,
    metadata: &Metadata,
    all: &[(OwnedFd, Seen)],
    waiting: Option<Result<Vec<Message>, String>>,
    connections: &Connections,
    members: &[Pid],
) -> Result<Object, String> {
    let said = |e: io::Error| e.to_string();
    let family = socket::integer(fd, libc::SO_DOMAIN).map_err(said)?;
    match family {
        libc::AF_UNIX => {}
        libc::AF_INET | libc::AF_INET6 => {
            return endpoint::capture_inet(fd, metadata, family, connections);
        }
        _ => return Err(Seen::of_another_family(family)),
    }
    let kind = socket::integer(fd, libc::SO_TYPE).map_err(said)?;
    let found = diag::diagnose(metadata.ino() as u32).map_err(said)?;
    let Diagnosis { peer: Some(peer), shut, .. } = found else {
        return endpoint::capture_unix(seen, fd, metadata, kind, found, &connections.new);
    };
    let name = named::name_of(socket::address(fd)).map_err(said)?;
    let peer_name = named::name_of(socket::peer_address(fd)).map_err(said)?;
    // Anybody may send to its name.
    if kind == libc::SOCK_DGRAM && !(name.is_empty() && peer_name.is_empty()) {
        return Err("it is connected, with an address; that cannot be saved yet".to_owned());
    }
    let has_peer =
        |(_, other): &&(OwnedFd, Seen)| other.target.to_str() == Some(&*format!("socket:[{peer}]"));
    let closed = peer == 0;
    let connected = kind == libc::SOCK_DGRAM || shut == BOTH;
    if closed && !connected {
        return Err("nobody has accepted its connection yet, which cannot be saved".to_owned());
    }
    let other = all.iter().find(has_peer);
    if !closed && other.is_none() {
        return Err(
            "its other end is held by a process outside the program, or on its way in a message".to_owned()
        );
    }
    let waiting = waiting.unwrap_or_else(|| Err("it was not looked into".to_owned()))?;
    if let Some(sender) =
        waiting.iter().filter_map(|m| m.sender).find(|s| !members.contains(&Pid::from_raw(s.pid)))
    {
        return Err(format!("a message of process {} waits in it, which is not of the program", sender.pid));
    }
    let options = option::capture(fd, kind_of(kind), &connections.new)?;
    Ok(Object::Socket(SocketRecord {
        socket: metadata.ino(),
        peer: u64::from(peer),
        kind,
        waiting,
        shut,
        options,
        name,
        peer_name,
    }))
}

const BOTH: u32 = 3;

fn kind_of(kind: i32) -> Kind {
    Kind { family: libc::AF_UNIX, kind, protocol: 0, connected: false }
}

/// A message with the descriptors that come with it.
type Found = (Message, Vec<OwnedFd>);

/// Everything that waits to be read in a Unix socket, left where it is; none of one that is not connected, or
/// of another kind of socket.
///
/// # Errors
/// The reason why it cannot be saved.
pub fn waiting(fd: &OwnedFd) -> Result<Option<Vec<Found>>, String> {
    let said = |e: io::Error| e.to_string();
    if socket::integer(fd, libc::SO_DOMAIN).map_err(said)? != libc::AF_UNIX {
        return Ok(None);
    }
    // Whoever reads takes it: it is to be the program.
    if polled(fd, PollFlags::POLLERR) {
        return Err("an error waits in it, which cannot be saved".to_owned());
    }
    // Nothing comes to one that is not connected, but messages to its name: whoever has sent these is not known.
    if socket::peer_address(fd).is_err() {
        return Ok(None);
    }
    let kind = socket::integer(fd, libc::SO_TYPE).map_err(said)?;
    // A message tells who has sent it, and makes no pidfd of that.
    let during = [(libc::SO_PEEK_OFF, 0i32), (libc::SO_PASSCRED, 1), (libc::SO_PASSSEC, 0), (PASSPIDFD, 0)];
    let mut before = Vec::with_capacity(during.len());
    for (name, value) in during {
        // What this kernel does not have needs no change.
        if let Ok(old) = socket::option(fd, name) {
            before.push((name, old));
            socket::set_option(fd, name, &value.to_ne_bytes()).map_err(said)?;
        }
    }
    let found = no_empty_one(fd, kind).and_then(|()| peek_all(fd, kind));
    for (name, old) in before.iter().rev() {
        socket::set_option(fd, *name, old).map_err(said)?;
    }
    found.map(Some)
}

const EMPTY: &str = "an empty message waits in it, which cannot be saved yet";

/// Sockets in which an empty message was met, and something has waited ever since: once it was peeked at, the kernel passes it
/// over for SO_PEEK_OFF (__skb_try_recv_from_queue() of net/core/datagram.c), whatever is before and behind it.
static WITH_EMPTY_ONES: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// Whether an empty message waits that would be passed over: at the head, where it can be seen without SO_PEEK_OFF, or one that
/// was met before.
fn no_empty_one(fd: &OwnedFd, kind: i32) -> Result<(), String> {
    let said = |e: io::Error| e.to_string();
    if kind == libc::SOCK_STREAM {
        return Ok(());
    }
    let identity = inode(fd)?;
    let mut met = WITH_EMPTY_ONES.lock().unwrap_or_else(PoisonError::into_inner);
    if !polled(fd, PollFlags::POLLIN) {
        met.remove(&identity);
        return Ok(());
    }
    let peeks_at = |offset: i32| socket::set_option(fd, libc::SO_PEEK_OFF, &offset.to_ne_bytes());
    peeks_at(-1).map_err(said)?;
    let head = socket::peek(fd, &mut [0]);
    peeks_at(0).map_err(said)?;
    match head {
        Ok(head) if head.len == 0 && !is_end(&head, kind) => {
            met.insert(identity);
            Err(EMPTY.to_owned())
        }
        _ if met.contains(&identity) => Err(EMPTY.to_owned()),
        _ => Ok(()),
    }
}

/// Whether nothing was there to be peeked at, as the other end sends no more: with SO_PASSCRED each message names somebody.
fn is_end(got: &Peeked, kind: i32) -> bool {
    let nobody = match kind {
        libc::SOCK_STREAM => true,
        libc::SOCK_SEQPACKET => got.sender.is_none(),
        _ => false,
    };
    nobody && got.len == 0
}

fn inode(fd: &OwnedFd) -> Result<u64, String> {
    nix::sys::stat::fstat(fd).map(|status| status.st_ino).map_err(|e| e.to_string())
}

fn peek_all(fd: &OwnedFd, kind: i32) -> Result<Vec<Found>, String> {
    let said = |e: io::Error| e.to_string();
    let is_stream = kind == libc::SOCK_STREAM;
    // Of a stream, more than there is: a full buffer would come with what is behind it.
    let there = if is_stream { socket::waiting(fd).map_err(said)? } else { 0 };
    let mut buffer = vec![0; (there + 1).max(1 << 20)];
    let mut found: Vec<Found> = Vec::new();
    let mut total = 0;
    let hung_up = PollFlags::from_bits_retain(libc::POLLRDHUP);
    loop {
        let got = match socket::peek(fd, &mut buffer) {
            // The other end sends no more.
            Ok(got) if is_end(&got, kind) && polled(fd, hung_up) => break,
            Ok(got) if got.len == 0 => {
                WITH_EMPTY_ONES.lock().unwrap_or_else(PoisonError::into_inner).insert(inode(fd)?);
                return Err(EMPTY.to_owned());
            }
            Ok(got) if got.cut => {
                return Err("a message of more than 1 MiB, or with more than that, waits in it".to_owned());
            }
            Ok(got) if got.unknown => return Err("a message of an unknown kind waits in it".to_owned()),
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e.to_string()),
        };
        let sender = got.sender.filter(|(pid, ..)| *pid != 0).map(|(pid, uid, gid)| Sender { pid, uid, gid });
        let message = |bytes: &[u8]| Message { bytes: bytes.to_vec(), descriptions: Vec::new(), sender };
        let begin =
            if is_stream && !got.descriptors.is_empty() { first_with(fd, total, got.len)? } else { 0 };
        if begin > 0 {
            found.push((message(&buffer[..begin]), Vec::new()));
        }
        found.push((message(&buffer[begin..got.len]), got.descriptors));
        total += got.len;
    }
    if kind != libc::SOCK_DGRAM && total != socket::waiting(fd).map_err(said)? {
        if !is_stream {
            WITH_EMPTY_ONES.lock().unwrap_or_else(PoisonError::into_inner).insert(inode(fd)?);
        }
        return Err(
            "data out of band (MSG_OOB) or empty messages wait in it, which cannot be saved yet".to_owned()
        );
    }
    Ok(found)
}
/// How much of the stream from `at` on, `length` bytes that come with descriptors, is before those that bring them.
fn first_with(fd: &OwnedFd, at: usize, length: usize) -> Result<usize, String> {
    let said = |e: io::Error| e.to_string();
    let go_to = |to: usize| {
        let offset = i32::try_from(to).unwrap_or(i32::MAX);
        socket::set_option(fd, libc::SO_PEEK_OFF, &offset.to_ne_bytes()).map_err(said)
    };
    go_to(at)?;
    let before = socket::before_last(fd, length).map_err(said)?;
    go_to(at + length)?;
    Ok(before)
}

/// The sockets of one restart until they are filled.
#[derive(Default)]
pub struct Sockets {
    /// Ends whose records have not been met yet.
    pairs: HashMap<u64, OwnedFd>,
    /// Other ends of those that have none, by these.
    closed: HashMap<u64, OwnedFd>,
}

impl Sockets {
    /// The end that `record` is of; the first call for a pair makes it. It is filled by [`Sockets::finish`].
    pub fn rebuild(&mut self, record: &SocketRecord, flags: u32) -> io::Result<OwnedFd> {
        let own = match self.pairs.entry(record.socket) {
            Entry::Occupied(made) => made.remove(),
            Entry::Vacant(_) => {
                let (own, peer) = if record.name.is_empty() && record.peer_name.is_empty() {
                    let kind = SockType::try_from(record.kind)?;
                    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?
                } else {
                    named::pair(record.kind, &record.name, &record.peer_name)?
                };
                let ends = if record.peer == 0 { &mut self.closed } else { &mut self.pairs };
                ends.insert(if record.peer == 0 { record.socket } else { record.peer }, peer);
                own
            }
        };
        fcntl(&own, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags as i32 & libc::O_NONBLOCK)))?;
        Ok(own)
    }

    /// Fills the sockets and gives them their options, when both ends of each are there, all else that is sent, and the
    /// processes that have sent it.
    pub fn finish(
        &self,
        records: &[(&SocketRecord, &OwnedFd)],
        descriptions: &[OwnedFd],
        is_roots: bool,
    ) -> io::Result<()> {
        for (record, _) in records {
            let peer = records.iter().find(|(other, _)| record.peer != 0 && other.socket == record.peer);
            if let Some(peer) = peer.map(|(_, peer)| *peer).or_else(|| self.closed.get(&record.socket)) {
                fill(record, peer, descriptions)?;
            }
        }
        records.iter().try_for_each(|(record, own)| set_options(record, own, is_roots))
    }
}

/// Sends what waits in the record's end from its `peer`, however small the peer's buffer is.
fn fill(record: &SocketRecord, peer: &OwnedFd, descriptions: &[OwnedFd]) -> io::Result<()> {
    const ROOM: i32 = 1 << 29;
    let before = socket::option(peer, libc::SO_SNDBUF)?;
    option::set_size(peer, libc::SO_SNDBUF, &ROOM.to_ne_bytes())?;
    for message in &record.waiting {
        let number = |&index: &u32| descriptions.get(index as usize).map(AsRawFd::as_raw_fd);
        let mut with: Vec<RawFd> = message.descriptions.iter().filter_map(number).collect();
        if with.len() != message.descriptions.len() {
            let what = "a message brings nothing that is in the image";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let sender = message.sender.map(|s| (s.pid, s.uid, s.gid));
        let mut at = 0;
        while at < message.bytes.len() {
            at += socket::send_with(peer, &message.bytes[at..], &with, sender)?;
            with.clear();
        }
    }
    option::set_size(peer, libc::SO_SNDBUF, &halved(&before))?;
    Ok(())
}

fn set_options(record: &SocketRecord, own: &OwnedFd, is_roots: bool) -> io::Result<()> {
    option::rebuild(own, kind_of(record.kind), &record.options, is_roots)?;
    // What is shut of one end is shut of the other's other half: the kernel sees to that.
    let how = match record.shut {
        0 => return Ok(()),
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        _ => Shutdown::Both,
    };
    Ok(shutdown(own.as_raw_fd(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_with_the_bytes_that_they_were_sent_with() {
        let (here, there) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let send = |bytes: &[u8], with: &[RawFd]| socket::send_with(&here, bytes, with, None).unwrap();
        send(b"ab", &[]);
        send(b"c", &[]);
        send(b"de", &[here.as_raw_fd()]);
        send(b"f", &[there.as_raw_fd(), here.as_raw_fd()]);
        send(b"gh", &[]);
        nix::unistd::read(&there, &mut [0]).unwrap();
        let found = waiting(&there).unwrap().unwrap();
        let parts: Vec<(&[u8], usize)> =
            found.iter().map(|(m, fds)| (m.bytes.as_slice(), fds.len())).collect();
        assert_eq!(parts, [(&b"bc"[..], 0), (b"de", 1), (b"f", 2), (b"gh", 0)]);
        // Nothing was taken out.
        assert_eq!(socket::waiting(&there).unwrap(), 7);
    }

    #[test]
    fn an_option_that_is_not_kept_is_not_set_either() {
        let (own, _peer) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let option =
            |name| SocketOption { name, value: 1i32.to_ne_bytes().to_vec(), level: libc::SOL_SOCKET };
        let kind = libc::SOCK_STREAM;
        let record = |name| SocketRecord { kind, options: vec![option(name)], ..SocketRecord::default() };
        set_options(&record(libc::SO_RCVLOWAT), &own, false).unwrap();
        let refused = set_options(&record(libc::SO_ATTACH_FILTER), &own, true).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}

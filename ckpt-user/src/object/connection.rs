//! TCP connections whose two ends the program has, with what is on its way in them.
//!
//! What one end has sent is in the other's queue, or, where that had no room yet, still in its own; both are saved as what
//! the other end has to read. How a restart connects them again: [`super::joining`].

use super::new_sockets::NewSockets;
use super::option::{self, Kind, SocketOption};
use super::tcp_info::TcpInfo;
use super::{Object, endpoint, ports};
use crate::sys::socket;
use crate::sys::tcp_queues::{self, Stream};
use nix::poll::PollFlags;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::net::SocketAddrV6;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// One end; records that name each other as peers belong together.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ConnectionRecord {
    /// Inode numbers: identities within one image. A peer that is closed everywhere is 0.
    #[prost(uint64, tag = "1")]
    pub socket: u64,
    #[prost(uint64, tag = "2")]
    pub peer: u64,
    /// AF_INET, AF_INET6.
    #[prost(int32, tag = "3")]
    pub family: i32,
    /// As bind(2) and connect(2) take them.
    #[prost(bytes = "vec", tag = "4")]
    pub address: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub peer_address: Vec<u8>,
    /// What it has to read: what has come, and what is on its way.
    #[prost(bytes = "vec", tag = "6")]
    pub waiting: Vec<u8>,
    /// 1: it receives no more; 2: it sends no more.
    #[prost(uint32, tag = "7")]
    pub shut: u32,
    #[prost(message, repeated, tag = "8")]
    pub options: Vec<SocketOption>,
    /// As struct tcp_info has them: what both have agreed upon, and how windows are scaled.
    #[prost(uint32, tag = "9")]
    pub agreed: u32,
    #[prost(uint32, tag = "10")]
    pub scales: u32,
    /// Whose it is, and its mode, as fstat(2) gives them.
    #[prost(uint32, tag = "11")]
    pub uid: u32,
    #[prost(uint32, tag = "12")]
    pub gid: u32,
    #[prost(uint32, tag = "13")]
    pub mode: u32,
}

pub const RECEIVES_NO_MORE: u32 = 1;
pub const SENDS_NO_MORE: u32 = 2;
/// The largest shift of a window (RFC 7323).
const LARGEST_SCALE: u8 = 14;

impl ConnectionRecord {
    pub fn kind(&self) -> Kind {
        Kind::connected(self.family)
    }

    /// Whether a program can have it.
    pub fn is_sound(&self) -> bool {
        let fits = |address: &[u8]| place(address).is_some_and(|place| place.port() != 0);
        let of_family = |address: &[u8]| {
            address.first_chunk().is_some_and(|b| i32::from(u16::from_ne_bytes(*b)) == self.family)
        };
        let addresses = [&self.address, &self.peer_address];
        let scales = u8::try_from(self.scales).is_ok_and(|s| {
            let [told, tells] = halves(s);
            told <= LARGEST_SCALE && tells <= LARGEST_SCALE
        });
        let options = self.options.iter().all(|option| self.kind().takes(option));
        addresses.iter().all(|a| fits(a) && of_family(a))
            && scales
            && options
            && self.shut <= 3
            && self.agreed <= 0xff
    }

    /// Whether `other` is the other end of this one.
    pub fn is_met_by(&self, other: &Self) -> bool {
        let meets = |own: &[u8], its: &[u8]| place(own) == place(its);
        self.socket != self.peer
            && other.peer == self.socket
            && self.peer == other.socket
            && meets(&self.address, &other.peer_address)
            && meets(&self.peer_address, &other.address)
    }
}

/// The shift of the windows that an end is told, and of those that it tells.
pub fn halves(scales: u8) -> [u8; 2] {
    [scales & 0xf, scales >> 4]
}

/// An address of either family in the form of both.
pub fn place(address: &[u8]) -> Option<SocketAddrV6> {
    let family = i32::from(u16::from_ne_bytes(*address.first_chunk()?));
    let port = u16::from_be_bytes(*address.get(2..)?.first_chunk()?);
    match (family, address.len()) {
        (libc::AF_INET, 16) => {
            let host = std::net::Ipv4Addr::from(*address.get(4..)?.first_chunk::<4>()?);
            Some(SocketAddrV6::new(host.to_ipv6_mapped(), port, 0, 0))
        }
        (libc::AF_INET6, 28) => {
            let host = std::net::Ipv6Addr::from(*address.get(8..)?.first_chunk::<16>()?);
            let scope = u32::from_ne_bytes(*address.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(host, port, 0, scope))
        }
        _ => None,
    }
}

/// An end among the descriptors of a stopped program.
#[derive(Debug)]
struct End {
    address: Vec<u8>,
    peer_address: Vec<u8>,
    info: TcpInfo,
    /// Inode of the other end, and whether that one sends no more.
    peer: Option<(u64, bool)>,
    waiting: Vec<u8>,
}

/// The TCP connections of a stopped program, by inode, and what all its sockets are compared with.
#[derive(Debug)]
pub struct Connections {
    pub new: NewSockets,
    ends: HashMap<u64, End>,
    /// All of the network namespace: read if an end is met whose other one the program does not have.
    all: OnceCell<Vec<ports::Line>>,
}

impl Connections {
    /// Looks for them among `sockets`, with their inodes, and into their queues.
    ///
    /// # Errors
    /// A socket that cannot be read.
    pub fn look<'a>(sockets: impl Iterator<Item = (u64, &'a OwnedFd)>) -> io::Result<Self> {
        let new = NewSockets::default();
        let mut found = HashMap::new();
        let mut by_places = HashMap::new();
        for (inode, fd) in sockets {
            let Some(end) = End::look(fd, &new)? else { continue };
            by_places.insert((place(&end.address), place(&end.peer_address)), inode);
            found.insert(inode, (end, fd));
        }
        let met = |end: &End| by_places.get(&(place(&end.peer_address), place(&end.address))).copied();
        let peers: HashMap<u64, Option<u64>> =
            found.iter().map(|(inode, (end, _))| (*inode, met(end))).collect();
        let mut waiting = HashMap::new();
        let (mut busy, mut streams) = (Vec::new(), Vec::new());
        for (inode, (_, fd)) in &found {
            let sender = peers[inode].and_then(|peer| found.get(&peer)).map(|(_, fd)| *fd);
            let kept = sender.map_or(Ok(0), socket::unacknowledged)?;
            // Everything that was acknowledged has come.
            let arrived = socket::waiting(fd)?;
            match sender {
                Some(sender) if kept > 0 || is_peeked_at(fd) => {
                    busy.push(*inode);
                    streams.push(Stream {
                        receiver: fd.as_fd(),
                        sender: sender.as_fd(),
                        arrived: vec![0; arrived + kept + 1],
                        kept: vec![0; kept + 1],
                        ahead: 0,
                    });
                }
                _ => {
                    waiting.insert(*inode, peek(fd, arrived)?);
                }
            }
        }
        if !streams.is_empty() {
            tcp_queues::look(&mut streams)?;
        }
        for (stream, inode) in streams.into_iter().zip(busy) {
            let peer = peers[&inode].and_then(|peer| found.get(&peer)).map(|(end, _)| end.info);
            // An end of a stream counts as one byte, its last.
            let has_ended = peer.is_some_and(|peer| peer.has_ended());
            let ahead = (stream.ahead as usize).saturating_sub(usize::from(has_ended));
            let at = stream.kept.len().checked_sub(ahead);
            let rest = at.and_then(|at| stream.kept.get(at..));
            let rest =
                rest.ok_or_else(|| io::Error::other("its two ends do not agree about what was sent"))?;
            waiting.insert(inode, [&stream.arrived, rest].concat());
        }
        let ended: HashMap<u64, bool> =
            found.iter().map(|(i, (end, _))| (*i, end.info.has_ended())).collect();
        let connections = found.into_iter().map(|(inode, (mut end, _))| {
            end.waiting = waiting.remove(&inode).unwrap_or_default();
            end.peer = peers[&inode].map(|peer| (peer, ended.get(&peer).copied().unwrap_or(false)));
            (inode, end)
        });
        Ok(Self { new, ends: connections.collect(), all: OnceCell::new() })
    }

    /// The object of the socket, or the reason why a restart could not make it again.
    pub fn capture(&self, fd: &OwnedFd, metadata: &Metadata) -> Result<Object, String> {
        let Some(End { address, peer_address, info, peer, waiting }) = self.ends.get(&metadata.ino()) else {
            return Err("it is connected, and was not looked at".to_owned());
        };
        if endpoint::polled(fd, PollFlags::POLLPRI) {
            return Err("data out of band (MSG_OOB) wait in it, which cannot be saved".to_owned());
        }
        if address == peer_address {
            return Err("it is connected to itself, which cannot be saved".to_owned());
        }
        let (own, its) = place(address).zip(place(peer_address)).ok_or("it has no address")?;
        let peer_has_ended = match peer {
            Some((_, has_ended)) => *has_ended,
            None => self.is_closed(info, own, its)?,
        };
        // Whoever was told of an end receives no more without a call; without that only by one.
        let hung_up = endpoint::polled(fd, PollFlags::from_bits_retain(libc::POLLRDHUP));
        let receives = if hung_up && !info.is_at_end() && !peer_has_ended { RECEIVES_NO_MORE } else { 0 };
        let sends = if info.has_ended() { SENDS_NO_MORE } else { 0 };
        let family = address.first_chunk().map_or(0, |b| i32::from(u16::from_ne_bytes(*b)));
        Ok(Object::Connection(ConnectionRecord {
            socket: metadata.ino(),
            peer: peer.map_or(0, |(inode, _)| inode),
            family,
            address: address.clone(),
            peer_address: peer_address.clone(),
            waiting: waiting.clone(),
            shut: receives | sends,
            options: option::capture(fd, Kind::connected(family), &self.new)?,
            agreed: info.agreed.into(),
            scales: info.scales.into(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
        }))
    }

    /// Whether the other end, which the program does not have, is closed, on this machine.
    fn is_closed(&self, info: &TcpInfo, own: SocketAddrV6, its: SocketAddrV6) -> Result<bool, String> {
        let outside = || format!("it is connected to {}", shown(its));
        let all = self.all.get_or_init(ports::connections);
        let other = all.iter().find(|line| (line.local, line.remote) == (its, own));
        if let Some(who) = other.and_then(|line| ports::process_with(line.inode)) {
            return Err(format!("{}, which {who} has, outside the program", outside()));
        }
        let is_here = own.ip() == its.ip() || [own, its].iter().all(|place| is_loopback(*place));
        if info.is_at_end() && !info.has_ended() && is_here && other.is_none_or(|line| line.inode == 0) {
            return Ok(true);
        }
        Err(format!("{}, outside the program", outside()))
    }
}

impl End {
    /// `None`: it is no TCP connection of this network namespace.
    fn look(fd: &OwnedFd, new: &NewSockets) -> io::Result<Option<Self>> {
        let inet = [libc::AF_INET, libc::AF_INET6].contains(&socket::integer(fd, libc::SO_DOMAIN)?);
        let is_tcp = inet && socket::integer(fd, libc::SO_PROTOCOL)? == libc::IPPROTO_TCP;
        if !is_tcp || !new.are_of_the_network_of(fd) {
            return Ok(None);
        }
        let info = TcpInfo::of(fd)?;
        if !info.is_connected() {
            return Ok(None);
        }
        let (address, peer_address) = (socket::address(fd)?, socket::peer_address(fd)?);
        Ok(Some(Self { address, peer_address, info, peer: None, waiting: Vec::new() }))
    }
}

fn is_peeked_at(fd: &OwnedFd) -> bool {
    let at = socket::integer(fd, libc::SO_PEEK_OFF);
    at.is_ok_and(|at| at >= 0)
}

fn peek(fd: &OwnedFd, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    if length > 0 {
        let got = socket::peek(fd, &mut bytes)?;
        if got.len != length {
            return Err(io::Error::other("it does not show what waits in it"));
        }
    }
    Ok(bytes)
}

fn is_loopback(place: SocketAddrV6) -> bool {
    place.ip().to_canonical().is_loopback()
}

pub fn shown(place: SocketAddrV6) -> String {
    std::net::SocketAddr::new(place.ip().to_canonical(), place.port()).to_string()
}

//! TCP connections whose two ends the program has, with what is on its way in them.
//!
//! What one end has sent is in the other's queue, or, where that had no room yet, still in its own; both are saved as what
//! the other end has to read. A restart makes the two sockets, tells the kernel that they are connected (TCP_REPAIR,
//! net/ipv4/tcp.c), which no third one sees, and sends all that once more, from the one to the other.

use super::option::{self, Kind, SocketOption, halved};
use super::tcp_info::TcpInfo;
use super::{Object, endpoint, ports};
use crate::sys::caps::NoNetworkRights;
use crate::sys::socket;
use crate::sys::tcp_queues::{self, Stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::HashMap;
use std::fs::Metadata;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddrV6;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

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

const RECEIVES_NO_MORE: u32 = 1;
const SENDS_NO_MORE: u32 = 2;
/// The largest shift of a window (RFC 7323).
const LARGEST_SCALE: u8 = 14;

impl ConnectionRecord {
    fn kind(&self) -> Kind {
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
fn halves(scales: u8) -> [u8; 2] {
    [scales & 0xf, scales >> 4]
}

/// An address of either family in the form of both.
fn place(address: &[u8]) -> Option<SocketAddrV6> {
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

/// The TCP connections of a stopped program, by inode.
#[derive(Debug, Default)]
pub struct Connections(HashMap<u64, End>);

impl Connections {
    /// Looks for them among `sockets`, with their inodes, and into their queues.
    ///
    /// # Errors
    /// A socket that cannot be read.
    pub fn look<'a>(sockets: impl Iterator<Item = (u64, &'a OwnedFd)>) -> io::Result<Self> {
        let mut found = HashMap::new();
        let mut by_places = HashMap::new();
        for (inode, fd) in sockets {
            let Some(end) = End::look(fd)? else { continue };
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
            // An end of a stream counts as one byte, until it has come.
            let end_is_due = peer.is_some_and(|peer| peer.has_ended()) && !found[&inode].0.info.is_at_end();
            let ahead = (stream.ahead as usize).checked_sub(usize::from(end_is_due));
            let at = ahead.and_then(|count| stream.kept.len().checked_sub(count));
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
        Ok(Self(connections.collect()))
    }

    /// The object of the socket, or the reason why a restart could not make it again.
    pub fn capture(&self, fd: &OwnedFd, metadata: &Metadata) -> Result<Object, String> {
        let Some(End { address, peer_address, info, peer, waiting }) = self.0.get(&metadata.ino()) else {
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
            None => is_closed(info, own, its)?,
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
            options: option::capture(fd, Kind::connected(family))?,
            agreed: info.agreed.into(),
            scales: info.scales.into(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
        }))
    }
}

impl End {
    /// `None`: it is no TCP connection of this network namespace.
    fn look(fd: &OwnedFd) -> io::Result<Option<Self>> {
        let inet = [libc::AF_INET, libc::AF_INET6].contains(&socket::integer(fd, libc::SO_DOMAIN)?);
        let is_tcp = inet && socket::integer(fd, libc::SO_PROTOCOL)? == libc::IPPROTO_TCP;
        if !is_tcp || !endpoint::is_of_our_network(fd) {
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

/// Whether the other end, which the program does not have, is closed, on this machine.
fn is_closed(info: &TcpInfo, own: SocketAddrV6, its: SocketAddrV6) -> Result<bool, String> {
    let outside = || format!("it is connected to {}", shown(its));
    let other = ports::connections().into_iter().find(|line| (line.local, line.remote) == (its, own));
    if let Some(who) = other.and_then(|line| ports::process_with(line.inode)) {
        return Err(format!("{}, which {who} has, outside the program", outside()));
    }
    let is_here = own.ip() == its.ip() || [own, its].iter().all(|place| is_loopback(*place));
    if info.is_at_end() && !info.has_ended() && is_here && other.is_none_or(|line| line.inode == 0) {
        return Ok(true);
    }
    Err(format!("{}, outside the program", outside()))
}

fn is_loopback(place: SocketAddrV6) -> bool {
    place.ip().to_canonical().is_loopback()
}

fn shown(place: SocketAddrV6) -> String {
    std::net::SocketAddr::new(place.ip().to_canonical(), place.port()).to_string()
}

/// An end that is connected to nobody yet.
pub fn rebuild(record: &ConnectionRecord, flags: u32) -> io::Result<OwnedFd> {
    let fd = endpoint::create(record.kind(), (record.uid, record.gid), record.mode)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags as i32 & libc::O_NONBLOCK)))?;
    Ok(fd)
}

/// The connections of one restart.
pub struct Joining<'a> {
    ends: Vec<(&'a ConnectionRecord, &'a OwnedFd)>,
    is_roots: bool,
}

impl<'a> Joining<'a> {
    pub fn of(ends: Vec<(&'a ConnectionRecord, &'a OwnedFd)>, is_roots: bool) -> Self {
        Self { ends, is_roots }
    }

    /// Connects them and sends what was on its way. All other sockets are bound, and none listens.
    ///
    /// # Errors
    /// Named: an address that is not to be had.
    pub fn join(&self) -> io::Result<()> {
        for (index, (record, fd)) in self.ends.iter().enumerate() {
            let other = self.ends.iter().position(|(other, _)| record.peer != 0 && record.is_met_by(other));
            match other {
                Some(other) if other < index => {}
                Some(other) => {
                    let (peer, its) = self.ends[other];
                    self.connect([(record, fd), (peer, its)])?;
                }
                None if record.peer == 0 => {
                    let peer = ConnectionRecord {
                        address: record.peer_address.clone(),
                        peer_address: record.address.clone(),
                        shut: SENDS_NO_MORE,
                        scales: {
                            let [told, tells] = halves(record.scales as u8);
                            u32::from(told << 4 | tells)
                        },
                        waiting: Vec::new(),
                        options: Vec::new(),
                        ..(*record).clone()
                    };
                    let its = rebuild(&peer, 0)?;
                    self.connect([(record, fd), (&peer, &its)])?;
                }
                None => {
                    let what = "a connection leads to nothing that is in the image";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
        }
        Ok(())
    }

    fn connect(&self, ends: [(&ConnectionRecord, &OwnedFd); 2]) -> io::Result<()> {
        let set = |(record, fd): (&ConnectionRecord, &OwnedFd)| {
            option::rebuild(fd, record.kind(), &record.options, self.is_roots)
        };
        ends.into_iter().try_for_each(set)?;
        repair(ends, self.is_roots).map_err(|e| {
            let [own, its] = [&ends[0].0.address, &ends[0].0.peer_address].map(|a| place(a).map(shown));
            let [own, its] = [own, its].map(Option::unwrap_or_default);
            io::Error::new(e.kind(), format!("the program had a connection from {own} to {its}: {e}"))
        })?;
        let [one, other] = ends;
        fill(one.0, other.1)?;
        fill(other.0, one.1)?;
        for (record, fd) in ends {
            set((record, fd))?;
            share(fd)?;
            if record.shut & SENDS_NO_MORE != 0 {
                shutdown(fd.as_raw_fd(), Shutdown::Write)?;
            }
        }
        for (_, fd) in ends.iter().filter(|(record, _)| record.shut & RECEIVES_NO_MORE != 0) {
            shutdown(fd.as_raw_fd(), Shutdown::Read)?;
        }
        Ok(())
    }
}

/// Whether somebody may listen at the port of a connection is as the program has set it, once all who do so do.
pub fn settle(record: &ConnectionRecord, fd: &OwnedFd, is_roots: bool) -> io::Result<()> {
    option::rebuild(fd, record.kind(), &record.options, is_roots)
}

/// Others may be bound to its port.
pub fn share(fd: &OwnedFd) -> io::Result<()> {
    socket::set_option(fd, libc::SO_REUSEADDR, &1i32.to_ne_bytes())
}

/// net/ipv4/tcp.c, linux/tcp.h.
mod tcp {
    pub const REPAIR_QUEUE: i32 = 20;
    pub const QUEUE_SEQ: i32 = 21;
    pub const REPAIR_OPTIONS: i32 = 22;
    pub const REPAIR_WINDOW: i32 = 29;
    pub const RECEIVED: i32 = 1;
    pub const SENT: i32 = 2;
    /// Values of TCP_REPAIR. Off, and nothing is sent because of it.
    pub const ON: i32 = 1;
    pub const OFF: i32 = -1;
    /// Bits of `agreed`, and the options of a first segment that say so (TCPOPT_*).
    pub const AGREED: [(u32, u32); 3] = [(1, 8), (2, 4), (4, 3)];
    pub const SCALE: u32 = 3;
    pub const SEGMENT: u32 = 2;
}

/// Tells the kernel that the two are connected.
fn repair(ends: [(&ConnectionRecord, &OwnedFd); 2], is_roots: bool) -> io::Result<()> {
    let set =
        |fd: &OwnedFd, name, value: i32| socket::set_option_at(fd, libc::SOL_TCP, name, &value.to_ne_bytes());
    let random = RandomState::new().hash_one(ends[0].0.socket);
    let begins = [random as u32, (random >> 32) as u32].map(u32::cast_signed);
    for ((record, fd), [own, its]) in ends.into_iter().zip([begins, [begins[1], begins[0]]]) {
        nobody_listens(record)?;
        set(fd, libc::TCP_REPAIR, tcp::ON)?;
        {
            let _as_anybody = if is_roots { None } else { Some(NoNetworkRights::begin()?) };
            socket::bind(fd, &record.address)?;
        }
        for (queue, at) in [(tcp::SENT, own), (tcp::RECEIVED, its)] {
            set(fd, tcp::REPAIR_QUEUE, queue)?;
            set(fd, tcp::QUEUE_SEQ, at)?;
        }
        connect(fd, &record.peer_address)?;
        let [told, tells] = halves(record.scales as u8).map(u32::from);
        let mut options = vec![tcp::SEGMENT, TcpInfo::of(fd)?.segment];
        for (_, option) in tcp::AGREED.into_iter().filter(|(bit, _)| record.agreed & bit != 0) {
            options.extend([option, if option == tcp::SCALE { tells << 16 | told } else { 0 }]);
        }
        let bytes: Vec<u8> = options.into_iter().flat_map(u32::to_ne_bytes).collect();
        socket::set_option_at(fd, libc::SOL_TCP, tcp::REPAIR_OPTIONS, &bytes)?;
    }
    // struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    let window = |fd: &OwnedFd| -> io::Result<[u32; 5]> {
        let bytes = socket::option_at(fd, libc::SOL_TCP, tcp::REPAIR_WINDOW, 20)?;
        let mut words = bytes.chunks_exact(4).map(|b| b.try_into().map_or(0, u32::from_ne_bytes));
        Ok(std::array::from_fn(|_| words.next().unwrap_or(0)))
    };
    let windows = [window(ends[0].1)?, window(ends[1].1)?];
    for ((_, fd), [own, its]) in ends.into_iter().zip([windows, [windows[1], windows[0]]]) {
        let words = [own[4], its[3], its[3], own[3], own[4]];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        socket::set_option_at(fd, libc::SOL_TCP, tcp::REPAIR_WINDOW, &bytes)?;
    }
    ends.into_iter().try_for_each(|(_, fd)| set(fd, libc::TCP_REPAIR, tcp::OFF))
}

/// The connection of the program that was killed may be on its way out.
fn connect(fd: &OwnedFd, address: &[u8]) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    const PAUSE: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    loop {
        match socket::connect(fd, address) {
            Err(e)
                if begun.elapsed() < PATIENCE
                    && matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE)) =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                return Err(io::Error::new(e.kind(), "there is one by then"));
            }
            done => return done,
        }
    }
}

/// Nobody's port is taken: none of the program's own sockets listens yet.
fn nobody_listens(record: &ConnectionRecord) -> io::Result<()> {
    let Some(own) = place(&record.address) else { return Err(io::ErrorKind::InvalidData.into()) };
    let listens = |line: &ports::Line| {
        let host = line.local.ip().to_canonical();
        line.state == crate::sys::diag::LISTEN
            && line.local.port() == own.port()
            && (host.is_unspecified() || host == own.ip().to_canonical())
    };
    match ports::connections().into_iter().find(listens) {
        None => Ok(()),
        Some(line) => {
            let who = ports::process_with(line.inode).unwrap_or_else(|| "somebody".to_owned());
            let what = format!("{who} listens at port {} now", own.port());
            Err(io::Error::new(io::ErrorKind::AddrInUse, what))
        }
    }
}

/// Sends what `record`'s end has to read from its `peer`, however small the peer's buffer is.
fn fill(record: &ConnectionRecord, peer: &OwnedFd) -> io::Result<()> {
    const ROOM: i32 = 1 << 29;
    if record.waiting.is_empty() {
        return Ok(());
    }
    let before = socket::option(peer, libc::SO_SNDBUF)?;
    socket::set_option(peer, libc::SO_SNDBUFFORCE, &ROOM.to_ne_bytes())?;
    let mut at = 0;
    while at < record.waiting.len() {
        at += socket::send_with(peer, &record.waiting[at..], &[], None)?;
    }
    socket::set_option(peer, libc::SO_SNDBUFFORCE, &halved(&before))
}

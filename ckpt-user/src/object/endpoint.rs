//! Sockets that are not connected: new ones, bound ones and those that listen; Unix, TCP and UDP.
//!
//! Everything is made before the processes, names in the file system and queues last of all: a restart that fails leaves no
//! file that was not there, and nobody is let in before the program is about to run. A process listens itself, so that
//! SO_PEERCRED tells who it is.

use super::apart::apart;
use super::connection::Connections;
use super::new_sockets::NewSockets;
use super::option::{self, Kind, SocketOption};
use super::socket_file::{self, Names, Place, SocketFile};
use super::tcp_info::{CLOSE, TcpInfo};
use super::{Object, Seen, path_of, ports, udp};
use crate::sys::caps::NoNetworkRights;
use crate::sys::diag::{self, Diagnosis};
use crate::sys::ids::FsIds;
use crate::sys::socket;
use crate::task::proc::ProcDir;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct EndpointRecord {
    /// AF_*, SOCK_*, IPPROTO_*.
    #[prost(int32, tag = "1")]
    pub family: i32,
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(int32, tag = "3")]
    pub protocol: i32,
    /// As bind(2) takes it; empty: it is bound to nothing.
    #[prost(bytes = "vec", tag = "4")]
    pub address: Vec<u8>,
    /// It listens, and so many connections may wait.
    #[prost(uint32, optional, tag = "5")]
    pub backlog: Option<u32>,
    #[prost(message, repeated, tag = "6")]
    pub options: Vec<SocketOption>,
    /// 1: it receives no more; 2: it sends no more.
    #[prost(uint32, tag = "7")]
    pub shut: u32,
    /// Whose it is, and its mode, as fstat(2) gives them.
    #[prost(uint32, tag = "8")]
    pub uid: u32,
    #[prost(uint32, tag = "9")]
    pub gid: u32,
    #[prost(uint32, tag = "10")]
    pub mode: u32,
    /// Of a Unix socket whose address is a path.
    #[prost(message, optional, tag = "11")]
    pub file: Option<SocketFile>,
    /// The process that has called listen(2), of a Unix socket.
    #[prost(int32, tag = "12")]
    pub listener: i32,
    /// The address that a UDP socket is connected to, as connect(2) takes it; empty: to none.
    #[prost(bytes = "vec", tag = "13")]
    pub peer: Vec<u8>,
}

/// In struct sockaddr_un: where the path begins.
const PATH: usize = 2;

impl EndpointRecord {
    fn kind(&self) -> Kind {
        Kind { family: self.family, kind: self.kind, protocol: self.protocol, connected: false }
    }

    pub fn is_unix(&self) -> bool {
        self.family == libc::AF_UNIX
    }

    fn is_abstract(&self) -> bool {
        self.is_unix() && self.address.get(PATH) == Some(&0)
    }

    /// Of TCP and UDP.
    fn port(&self) -> u16 {
        self.address.get(2..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b))
    }

    /// The whole path of its file.
    fn path(&self) -> Option<PathBuf> {
        let file = self.file.as_ref()?;
        Some(path_of(&file.directory).join(given(&self.address)))
    }

    /// Users and groups that are given to it and to its file.
    pub fn owners(&self) -> impl Iterator<Item = (u32, u32)> {
        let file = self.file.as_ref().map(|file| (file.uid, file.gid));
        std::iter::once((self.uid, self.gid)).chain(file)
    }

    /// Whether it is one that a program can have.
    pub fn is_sound(&self) -> bool {
        let Self { family, kind, protocol, .. } = *self;
        let stream = kind == libc::SOCK_STREAM || (family == libc::AF_UNIX && kind == libc::SOCK_SEQPACKET);
        let known = match family {
            libc::AF_UNIX => protocol == 0 && (stream || kind == libc::SOCK_DGRAM),
            libc::AF_INET | libc::AF_INET6 => {
                [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)]
                    .contains(&(kind, protocol))
            }
            _ => false,
        };
        let own_family = self.address.first_chunk().map(|b| i32::from(u16::from_ne_bytes(*b)));
        let address = self.address.is_empty() || own_family == Some(family);
        let length = match family {
            libc::AF_UNIX => self.address.is_empty() || (3..=PATH + 108).contains(&self.address.len()),
            libc::AF_INET => [0, size_of::<libc::sockaddr_in>()].contains(&self.address.len()),
            _ => [0, size_of::<libc::sockaddr_in6>()].contains(&self.address.len()),
        };
        let has_path = self.is_unix() && !self.address.is_empty() && !self.is_abstract();
        let path = self.file.is_some() == has_path && self.path().is_none_or(|path| path.is_absolute());
        let queue =
            self.backlog.is_none_or(|most| stream && i32::try_from(most).is_ok() && !self.address.is_empty());
        let options = self.options.iter().all(|option| self.kind().takes(option));
        let peer = self.peer.is_empty()
            || (protocol == libc::IPPROTO_UDP && self.peer.len() == self.address.len() && {
                let family = self.peer.first_chunk().map(|b| i32::from(u16::from_ne_bytes(*b)));
                family == own_family
            });
        known && address && length && path && queue && options && peer && self.shut <= 3
    }
}

/// The path in a struct sockaddr_un, as the program has given it.
fn given(address: &[u8]) -> &Path {
    let name = address.get(PATH..).unwrap_or_default();
    path_of(name.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// Whether poll(2) says so of it.
pub fn polled(fd: &OwnedFd, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), what)];
    let asked = poll(&mut fds, PollTimeout::ZERO);
    asked.is_err() || fds[0].revents().is_none_or(|r| r.intersects(what))
}

/// A Unix socket that is not connected.
///
/// # Errors
/// The reason why a restart could not make it again.
pub fn capture_unix(
    seen: &Seen,
    fd: &OwnedFd,
    metadata: &Metadata,
    kind: i32,
    found: Diagnosis,
    new: &NewSockets,
) -> Result<Object, String> {
    let listens = found.state == diag::LISTEN;
    if listens && found.queue.0 > 0 {
        return Err(waits(found.queue.0));
    }
    let closed_half = found.shut & 1 != 0;
    if kind == libc::SOCK_DGRAM
        && (socket::waiting(fd).map_err(|e| e.to_string())? > 0
            || (!closed_half && polled(fd, PollFlags::POLLIN)))
    {
        return Err("messages wait in it, which cannot be saved yet".to_owned());
    }
    no_error(fd)?;
    let mut address = socket::address(fd).map_err(|e| e.to_string())?;
    if address.len() <= PATH {
        address.clear();
    }
    let has_path = address.get(PATH).is_some_and(|byte| *byte != 0);
    let kind = Kind { family: libc::AF_UNIX, kind, protocol: 0, connected: false };
    let mut record = record(fd, metadata, kind, address, new)?;
    if has_path {
        let cwd = ProcDir::process(seen.pid).link("cwd").ok();
        record.file = Some(socket_file::capture(fd, given(&record.address), cwd, seen.pid)?);
    }
    record.shut = found.shut;
    if listens {
        record.backlog = Some(found.queue.1);
        let by = socket::option(fd, libc::SO_PEERCRED).map_err(|e| e.to_string())?;
        record.listener = by.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    }
    Ok(Object::Endpoint(record))
}

fn waits(count: u32) -> String {
    format!(
        "{count} connections wait to be accepted, which cannot be saved; the next checkpoint may find none"
    )
}

fn no_error(fd: &OwnedFd) -> Result<(), String> {
    if polled(fd, PollFlags::POLLERR) {
        return Err("an error waits in it, which cannot be saved".to_owned());
    }
    Ok(())
}

fn record(
    fd: &OwnedFd,
    metadata: &Metadata,
    kind: Kind,
    address: Vec<u8>,
    new: &NewSockets,
) -> Result<EndpointRecord, String> {
    Ok(EndpointRecord {
        family: kind.family,
        kind: kind.kind,
        protocol: kind.protocol,
        address,
        options: option::capture(fd, kind, new)?,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode() & 0o7777,
        ..EndpointRecord::default()
    })
}

/// A TCP or UDP socket; one of `connections`, or one that is not connected.
///
/// # Errors
/// The reason why a restart could not make it again.
pub fn capture_inet(
    fd: &OwnedFd,
    metadata: &Metadata,
    family: i32,
    connections: &Connections,
) -> Result<Object, String> {
    let kind = socket::integer(fd, libc::SO_TYPE).map_err(|e| e.to_string())?;
    let protocol = socket::integer(fd, libc::SO_PROTOCOL).map_err(|e| e.to_string())?;
    let kind = Kind { family, kind, protocol, connected: false };
    let new = &connections.new;
    if !new.are_of_the_network_of(fd) {
        return Err("it is of another network namespace".to_owned());
    }
    let (mut backlog, mut peer) = (None, Vec::new());
    let hung_up = PollFlags::from_bits_retain(libc::POLLRDHUP);
    match (kind.kind, protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => match TcpInfo::of(fd).map_err(|e| e.to_string())? {
            info if info.is_connected() => {
                no_error(fd)?;
                return connections.capture(fd, metadata);
            }
            TcpInfo { state: CLOSE, .. } if polled(fd, hung_up) => {
                return Err("its connection has ended, which cannot be saved yet".to_owned());
            }
            TcpInfo { state: CLOSE, .. } => {}
            TcpInfo { state: diag::LISTEN, queue: (0, most), .. } => backlog = Some(most),
            TcpInfo { state: diag::LISTEN, queue: (now, _), .. } => return Err(waits(now)),
            _ => return Err("it is being connected; the next checkpoint may find it so".to_owned()),
        },
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {
            peer = socket::peer_address(fd).unwrap_or_default();
            if polled(fd, hung_up) {
                return Err("it was shut down, which cannot be saved yet".to_owned());
            }
            if polled(fd, PollFlags::POLLIN) {
                return Err(
                    "packets wait in it, which cannot be saved; the next checkpoint may find none".to_owned()
                );
            }
            udp::nothing_unsent(fd)?;
            udp::no_groups(fd, family)?;
        }
        _ => return Err(format!("sockets of protocol {protocol} cannot be saved yet")),
    }
    no_error(fd)?;
    let mut address = socket::address(fd).map_err(|e| e.to_string())?;
    // Neither port nor address: it is not bound.
    let host = if family == libc::AF_INET { 4..8 } else { 8..24 };
    if address.iter().skip(2).take(2).all(|b| *b == 0) {
        if address.get(host).is_some_and(|host| host.iter().any(|b| *b != 0)) {
            return Err("it has an address without a port, which cannot be saved yet".to_owned());
        }
        address.clear();
    }
    let record = EndpointRecord { backlog, peer, ..record(fd, metadata, kind, address, new)? };
    if backlog.is_some() && ports::is_being_connected_to(record.port()) {
        return Err(waits(1));
    }
    Ok(Object::Endpoint(record))
}

/// Makes it, and binds it unless its name is a file; `is_roots`: the image's owner is root.
///
/// # Errors
/// Named: an address that somebody else has, or that the image's owner may not have.
pub fn rebuild(record: &EndpointRecord, flags: u32, is_roots: bool) -> io::Result<OwnedFd> {
    let fd = new(record)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags as i32 & libc::O_NONBLOCK)))?;
    let bound = !record.is_unix() && !record.address.is_empty();
    option::rebuild(&fd, record.kind(), &record.options, is_roots)?;
    if bound {
        bind(record, &fd, is_roots)?;
    }
    if !record.peer.is_empty() {
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("{}: the program had it connected: {e}", name(record)))
        };
        socket::connect(&fd, &record.peer).map_err(named)?;
    }
    if record.is_abstract() {
        // It is bound when nothing else can fail; whether it can be is known now.
        bind(record, &new(record)?, is_roots)?;
    }
    if let Some(path) = record.path() {
        socket_file::look(&path)?;
    }
    Ok(fd)
}

fn new(record: &EndpointRecord) -> io::Result<OwnedFd> {
    create(record.kind(), (record.uid, record.gid), record.mode)
}

/// A socket with the ids of who made it.
pub fn create(kind: Kind, (uid, gid): (u32, u32), mode: u32) -> io::Result<OwnedFd> {
    const ALL: u32 = 0o777;
    // Its groups are nothing to a socket, and only root changes them.
    let maker = FsIds { uid, gid, ..FsIds::current() };
    let _as_maker = maker.assume()?;
    let fd = socket::create(kind.family, kind.kind, kind.protocol)?;
    if mode != ALL {
        let file = File::from(fd);
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        return Ok(file.into());
    }
    Ok(fd)
}

fn bind(record: &EndpointRecord, fd: &OwnedFd, is_roots: bool) -> io::Result<()> {
    let _as_anybody = if is_roots { None } else { Some(NoNetworkRights::begin()?) };
    let name = || name(record);
    socket::bind(fd, &record.address).map_err(|e| {
        let what = match e.raw_os_error() {
            Some(libc::EADDRINUSE) if !record.is_unix() => {
                let who = ports::holder(record.protocol, record.port());
                let lingers = who.is_none() && ports::lingers(record.port());
                let what = if lingers {
                    "connections that have ended linger under it for up to a minute (without SO_REUSEADDR); then try again".to_owned()
                } else {
                    format!("{} has it now", who.as_deref().unwrap_or("somebody"))
                };
                format!("{}: the program had it, and {what}", name())
            }
            Some(libc::EADDRINUSE) => format!("{}: the program had it, and somebody has it now", name()),
            Some(libc::EACCES) if !record.is_unix() => format!(
                "{}: the program had it, which only root's images may have (net.ipv4.ip_unprivileged_port_start)",
                name()
            ),
            _ => format!("{}: the program had it, and it cannot be had: {e}", name()),
        };
        io::Error::new(e.kind(), what)
    })?;
    if socket::address(fd)? != record.address {
        let what = format!("{}: a socket that is bound to it has another address", name());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(())
}

/// Its address in words.
fn name(record: &EndpointRecord) -> String {
    if let Some(path) = record.path() {
        return path.display().to_string();
    }
    if record.is_unix() {
        return format!("@{}", String::from_utf8_lossy(record.address.get(PATH + 1..).unwrap_or_default()));
    }
    let protocol = if record.protocol == libc::IPPROTO_TCP { "TCP" } else { "UDP" };
    format!("{protocol} port {}", record.port())
}

/// Gives a Unix socket its name, and its halves their end. A file of the program that was killed makes place; where there
/// was one, there is one again whatever fails after this.
pub fn finish(record: &EndpointRecord, fd: &OwnedFd, names: &mut Names) -> io::Result<()> {
    let is_roots = names.owner.uid == 0;
    if let (Some(path), Some(file)) = (record.path(), &record.file) {
        let as_owner = names.owner.assume()?;
        let place = socket_file::look(&path)?;
        if place == Place::Stale {
            std::fs::remove_file(&path)?;
        }
        bind_from(path_of(&file.directory), record, fd, is_roots)?;
        // The very file, whatever has its path by now.
        let opened = socket::bound_file(fd)?;
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let made = File::from(opened.try_clone()?).metadata()?;
        if place == Place::Free {
            names.note(path, &made);
        }
        drop(as_owner);
        if (made.uid(), made.gid()) != (file.uid, file.gid) {
            std::os::unix::fs::chown(&link, Some(file.uid), Some(file.gid))?;
        }
        if made.mode() & 0o7777 != file.mode {
            std::fs::set_permissions(&link, PermissionsExt::from_mode(file.mode))?;
        }
    } else if record.is_abstract() {
        bind(record, fd, is_roots)?;
    }
    let how = match record.shut {
        0 => return Ok(()),
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        _ => Shutdown::Both,
    };
    Ok(shutdown(fd.as_raw_fd(), how)?)
}

/// As it was, after it had to share its port for a while.
pub fn settle(record: &EndpointRecord, fd: &OwnedFd, is_roots: bool) -> io::Result<()> {
    option::rebuild(fd, record.kind(), &record.options, is_roots)
}

/// Binds to a relative path from `directory`, in a thread of its own: directories are a process's otherwise.
fn bind_from(directory: &Path, record: &EndpointRecord, fd: &OwnedFd, is_roots: bool) -> io::Result<()> {
    if directory.as_os_str().is_empty() {
        return bind(record, fd, is_roots);
    }
    let there = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        std::env::set_current_dir(directory)?;
        bind(record, fd, is_roots)
    };
    apart(there, "binding a socket failed")
}

impl Seen {
    /// A socket that is neither Unix, TCP nor UDP.
    pub fn of_another_family(family: i32) -> String {
        let name = match family {
            libc::AF_NETLINK => " (netlink)",
            libc::AF_PACKET => " (packet)",
            libc::AF_VSOCK => " (vsock)",
            libc::AF_ALG => " (alg)",
            _ => "",
        };
        format!("sockets of family {family}{name} cannot be saved yet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_holds_no_socket_that_no_program_can_have() {
        let address = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], b"/run/a\0"].concat();
        let (family, kind, backlog) = (libc::AF_UNIX, libc::SOCK_STREAM, Some(5));
        let file = Some(SocketFile::default());
        let sound = EndpointRecord { family, kind, address, backlog, file, ..EndpointRecord::default() };
        assert!(sound.is_sound());
        let changes: [fn(&mut EndpointRecord); 8] = [
            |r| r.family = libc::AF_PACKET,
            |r| r.protocol = 1,
            |r| r.kind = libc::SOCK_DGRAM,
            |r| r.address[0] = libc::AF_INET as u8,
            |r| r.address.truncate(1),
            |r| r.file = None,
            |r| r.address[PATH] = b'a',
            |r| r.options.push(SocketOption { name: libc::SO_ATTACH_FILTER, ..SocketOption::default() }),
        ];
        for change in changes {
            let mut record = sound.clone();
            change(&mut record);
            assert!(!record.is_sound(), "{record:?}");
        }
    }
}

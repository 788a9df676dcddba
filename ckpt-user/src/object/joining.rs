//! Connects the TCP connections of a program again.
//!
//! The kernel is told that two sockets are connected (TCP_REPAIR, net/ipv4/tcp.c), which no third one sees. Then what each
//! has to read is sent once more, from the other one.

use super::connection::{ConnectionRecord, RECEIVES_NO_MORE, SENDS_NO_MORE, halves, place, shown};
use super::option::{self, halved};
use super::tcp_info::TcpInfo;
use super::{endpoint, ports};
use crate::sys::caps::NoNetworkRights;
use crate::sys::socket;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

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
    /// Sockets of others: none of the program's own is there yet.
    others: Vec<ports::Line>,
}

impl<'a> Joining<'a> {
    pub fn of(ends: Vec<(&'a ConnectionRecord, &'a OwnedFd)>, is_roots: bool) -> Self {
        let others = if ends.is_empty() { Vec::new() } else { ports::connections() };
        Self { ends, is_roots, others }
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
        self.nobody_listens(ends[0].0)
            .and_then(|()| self.nobody_listens(ends[1].0))
            .and_then(|()| repair(ends, self.is_roots))
            .map_err(|e| {
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

    /// Nobody's port is taken: none of the program's own sockets listens yet.
    fn nobody_listens(&self, record: &ConnectionRecord) -> io::Result<()> {
        let Some(own) = place(&record.address) else { return Err(io::ErrorKind::InvalidData.into()) };
        let listens = |line: &ports::Line| {
            let host = line.local.ip().to_canonical();
            line.state == crate::sys::diag::LISTEN
                && line.local.port() == own.port()
                && (host.is_unspecified() || host == own.ip().to_canonical())
        };
        match self.others.iter().find(|line| listens(line)) {
            None => Ok(()),
            Some(line) => {
                let who = ports::process_with(line.inode).unwrap_or_else(|| "somebody".to_owned());
                let what = format!("{who} listens at port {} now", own.port());
                Err(io::Error::new(io::ErrorKind::AddrInUse, what))
            }
        }
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

/// Sends what `record`'s end has to read from its `peer`, however small the peer's buffer is.
fn fill(record: &ConnectionRecord, peer: &OwnedFd) -> io::Result<()> {
    const ROOM: i32 = 1 << 29;
    if record.waiting.is_empty() {
        return Ok(());
    }
    let before = socket::option(peer, libc::SO_SNDBUF)?;
    option::set_size(peer, libc::SO_SNDBUF, &ROOM.to_ne_bytes())?;
    let mut at = 0;
    while at < record.waiting.len() {
        at += socket::send_with(peer, &record.waiting[at..], &[], None)?;
    }
    option::set_size(peer, libc::SO_SNDBUF, &halved(&before))
}

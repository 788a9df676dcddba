//! struct tcp_info (linux/tcp.h): what the kernel tells of a TCP socket.

use crate::sys::socket;
use std::io;
use std::os::fd::OwnedFd;

/// TCP_*: `TcpInfo::state`.
pub const ESTABLISHED: u8 = 1;
pub const FIN_WAIT1: u8 = 4;
pub const FIN_WAIT2: u8 = 5;
pub const CLOSE: u8 = 7;
pub const CLOSE_WAIT: u8 = 8;
pub const LAST_ACK: u8 = 9;
pub const CLOSING: u8 = 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    pub state: u8,
    /// TCPI_OPT_*: what the two ends have agreed upon.
    pub agreed: u8,
    /// By how many bits windows are shifted: the ones that it is told (low half), those that it tells (high half).
    pub scales: u8,
    /// Of a socket that listens: how many connections wait, and how many may.
    pub queue: (u32, u32),
    /// The largest segment that it takes.
    pub segment: u32,
}

impl TcpInfo {
    pub fn of(fd: &OwnedFd) -> io::Result<Self> {
        let info = socket::option_at(fd, libc::SOL_TCP, libc::TCP_INFO, 104)?;
        Self::parse(&info).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub(crate) fn parse(info: &[u8]) -> Option<Self> {
        let word = |at: usize| info.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_ne_bytes(*b));
        Some(Self {
            state: *info.first()?,
            agreed: *info.get(5)?,
            scales: *info.get(6)?,
            queue: (word(24)?, word(28)?),
            segment: word(84)?,
        })
    }

    /// Whether there is another end, or was until it closed.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING)
    }

    /// It sends no more.
    pub fn has_ended(&self) -> bool {
        self.is_connected() && !matches!(self.state, ESTABLISHED | CLOSE_WAIT)
    }

    /// It was told that the other end sends no more.
    pub fn is_at_end(&self) -> bool {
        matches!(self.state, CLOSE_WAIT | LAST_ACK | CLOSING)
    }
}

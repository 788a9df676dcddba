//! The kernel's diagnosis of Unix sockets (sock_diag(7), linux/unix_diag.h).

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::io;
use std::os::fd::AsRawFd;

/// What sock_diag(7) says of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Diagnosis {
    /// TCP_*, of any kind of socket.
    pub state: u8,
    /// Inode number of the peer, 0 when that is closed; `None`: it is not connected.
    pub peer: Option<u32>,
    /// 1: it receives no more; 2: it sends no more.
    pub shut: u32,
    /// It has an address.
    pub named: bool,
    /// Of one that listens: connections that nobody has accepted, and how many may wait.
    pub queue: (u32, u32),
}

/// `Diagnosis::state` of a socket that listens.
pub const LISTEN: u8 = 10;

/// Asks for the socket with this inode number in our network namespace.
///
/// # Errors
/// ENOENT when there is none, or where the kernel has no diagnosis of Unix sockets.
pub fn diagnose(inode: u32) -> io::Result<Diagnosis> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    /// UDIAG_SHOW_NAME, UDIAG_SHOW_PEER, UDIAG_SHOW_RQLEN.
    const SHOW: u32 = 1 | 4 | 0x10;
    let family = AddressFamily::Netlink;
    let netlink = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    // struct nlmsghdr, struct unix_diag_req: 16 and 24 bytes.
    let mut request = Vec::with_capacity(40);
    request.extend(40u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(inode.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    // The cookie that fits any.
    request.extend([0xff; 8]);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let got = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    parse(&answer[..got])
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let four = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
    four.map(|b| u32::from_ne_bytes(*b)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn half(bytes: &[u8], at: usize) -> io::Result<u16> {
    let two = bytes.get(at..).and_then(|b| b.first_chunk::<2>());
    two.map(|b| u16::from_ne_bytes(*b)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// struct nlmsghdr, struct unix_diag_msg (16 bytes each), attributes.
pub(crate) fn parse(answer: &[u8]) -> io::Result<Diagnosis> {
    const NAME: u16 = 0;
    const PEER: u16 = 2;
    const QUEUE: u16 = 4;
    const SHUTDOWN: u16 = 6;
    if half(answer, 4)? == libc::NLMSG_ERROR as u16 {
        return Err(io::Error::from_raw_os_error((word(answer, 16)? as i32).wrapping_neg()));
    }
    let state = *answer.get(18).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut found = Diagnosis { state, ..Diagnosis::default() };
    let end = (word(answer, 0)? as usize).min(answer.len());
    let mut at = 32;
    while at + 4 <= end {
        let (len, kind) = (half(answer, at)? as usize, half(answer, at + 2)?);
        match kind {
            NAME => found.named = true,
            PEER => found.peer = Some(word(answer, at + 4)?),
            QUEUE => found.queue = (word(answer, at + 4)?, word(answer, at + 8)?),
            SHUTDOWN => {
                found.shut = u32::from(*answer.get(at + 4).ok_or(io::ErrorKind::UnexpectedEof)?);
            }
            _ => {}
        }
        at += len.max(4).next_multiple_of(4);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_peer_of_a_pair_and_what_is_shut() {
        let (a, b) = UnixStream::pair().unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |s: &UnixStream| {
            let file = std::fs::File::from(OwnedFd::from(s.try_clone().unwrap()));
            file.metadata().unwrap().ino() as u32
        };
        let found = diagnose(inode(&b)).unwrap();
        let state = 1;
        assert_eq!(found, Diagnosis { state, peer: Some(inode(&a)), shut: 1, ..Diagnosis::default() });
        drop(b);
        let found = diagnose(inode(&a)).unwrap();
        assert_eq!((found.peer, found.shut), (Some(0), 3));
        assert!(diagnose(u32::MAX - 1).is_err());
    }

    #[test]
    fn who_waits_to_be_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("a")).unwrap();
        let file = std::fs::File::from(OwnedFd::from(listener.try_clone().unwrap()));
        let inode = file.metadata().unwrap().ino() as u32;
        let found = diagnose(inode).unwrap();
        assert_eq!((found.state, found.peer, found.named, found.queue.0), (LISTEN, None, true, 0));
        let _waits = UnixStream::connect(dir.path().join("a")).unwrap();
        assert_eq!(diagnose(inode).unwrap().queue.0, 1);
    }
}

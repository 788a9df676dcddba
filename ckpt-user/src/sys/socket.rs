//! Socket options by number, peeking, and the kernel's diagnosis of Unix sockets (linux/unix_diag.h).

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    UnixCredentials, recv, recvmsg, send, sendmsg, socket,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The value of an option of level SOL_SOCKET, at most 16 bytes.
pub fn option(fd: &OwnedFd, name: i32) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; 16];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value` and their number to `len`; both live across the call.
    let got = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    super::check(i64::from(got))?;
    value.truncate(len as usize);
    Ok(value)
}

/// The same, of an option that is an int.
pub fn integer(fd: &OwnedFd, name: i32) -> io::Result<i32> {
    let value = option(fd, name)?;
    value.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Sets an option of level SOL_SOCKET.
pub fn set_option(fd: &OwnedFd, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, which lives across the call.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.as_ptr().cast(), len) };
    super::check(i64::from(set)).map(drop)
}

/// Bytes that wait to be read: of a stream all, of others those of the first message.
pub fn waiting(fd: &OwnedFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `bytes`, which lives across the call.
    super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }))?;
    Ok(bytes as usize)
}

/// What [`peek`] has found.
#[derive(Debug, Default)]
pub struct Peeked {
    pub len: usize,
    /// There was more of the message, or of what comes with it, than there was room for.
    pub cut: bool,
    /// Duplicates of the descriptors that come with it.
    pub descriptors: Vec<OwnedFd>,
    /// Process, user and group of the sender; process 0 where the message does not name one.
    pub sender: Option<(i32, u32, u32)>,
    /// Something else comes with it.
    pub unknown: bool,
}

/// recvmsg(2) that takes nothing out and never waits.
pub fn peek(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Peeked> {
    /// SCM_MAX_FD (include/net/scm.h).
    const MOST: usize = 253;
    let mut control = nix::cmsg_space!([RawFd; MOST], libc::ucred, [u8; 256]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut found = Peeked { len: got.bytes, ..Peeked::default() };
    found.cut = got.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    for message in got.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(numbers) => {
                // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
                found.descriptors.extend(numbers.into_iter().map(|n| unsafe { OwnedFd::from_raw_fd(n) }));
            }
            ControlMessageOwned::ScmCredentials(from) => {
                found.sender = Some((from.pid(), from.uid(), from.gid()));
            }
            _ => found.unknown = true,
        }
    }
    Ok(found)
}

/// Of the next `length` bytes of a stream: how many are in the kernel's buffers before the one that the last byte is in.
/// Takes nothing out.
///
/// What is peeked at comes with the descriptors of all buffers up to the first that brings any, however few bytes are asked
/// for. But of a buffer that cannot be copied whole, nothing is: the last byte has no place to go to.
pub fn before_last(fd: &OwnedFd, length: usize) -> io::Result<usize> {
    let mut bytes = vec![0u8; length.saturating_sub(1)];
    let nowhere = libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 };
    let mut parts = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }, nowhere];
    // SAFETY: all-zero is a valid msghdr: no address, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: `message`, `parts` and `bytes` live across the call; the second part is in the first page, which is never
    // mapped: the kernel answers EFAULT and writes nothing there.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    match super::check(got as i64) {
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        got => got.map(|n| n as usize),
    }
}

/// Sends a message or a part of a stream, with descriptors and in somebody's name; never waits.
pub fn send_with(
    fd: &OwnedFd,
    bytes: &[u8],
    descriptors: &[RawFd],
    sender: Option<(i32, u32, u32)>,
) -> io::Result<usize> {
    let name = sender.map(|(pid, uid, gid)| UnixCredentials::from(libc::ucred { pid, uid, gid }));
    let mut with: Vec<ControlMessage<'_>> = name.iter().map(ControlMessage::ScmCredentials).collect();
    if !descriptors.is_empty() {
        with.push(ControlMessage::ScmRights(descriptors));
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], &with, flags, None)?)
}

/// What sock_diag(7) says of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Diagnosis {
    /// Inode number of the peer; 0 when there is none or it is closed.
    pub peer: u32,
    /// 1: it receives no more; 2: it sends no more.
    pub shut: u32,
    /// It has an address.
    pub named: bool,
}

/// Asks for the socket with this inode number in our network namespace.
///
/// # Errors
/// ENOENT when there is none, or where the kernel has no diagnosis of Unix sockets.
pub fn diagnose(inode: u32) -> io::Result<Diagnosis> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const SHOW_NAME_AND_PEER: u32 = 1 | 4;
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
    request.extend(SHOW_NAME_AND_PEER.to_ne_bytes());
    // The cookie that fits any.
    request.extend([0xff; 8]);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let got = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read_answer(&answer[..got])
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
fn read_answer(answer: &[u8]) -> io::Result<Diagnosis> {
    const NAME: u16 = 0;
    const PEER: u16 = 2;
    const SHUTDOWN: u16 = 6;
    if half(answer, 4)? == libc::NLMSG_ERROR as u16 {
        return Err(io::Error::from_raw_os_error((word(answer, 16)? as i32).wrapping_neg()));
    }
    let mut found = Diagnosis::default();
    let end = (word(answer, 0)? as usize).min(answer.len());
    let mut at = 32;
    while at + 4 <= end {
        let (len, kind) = (half(answer, at)? as usize, half(answer, at + 2)?);
        match kind {
            NAME => found.named = true,
            PEER => found.peer = word(answer, at + 4)?,
            SHUTDOWN => found.shut = u32::from(answer[at + 4]),
            _ => {}
        }
        at += len.max(4).next_multiple_of(4);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_of_a_pair_and_what_is_shut() {
        let (a, b) = UnixStream::pair().unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |s: &UnixStream| {
            let file = std::fs::File::from(OwnedFd::from(s.try_clone().unwrap()));
            file.metadata().unwrap().ino() as u32
        };
        let found = diagnose(inode(&b)).unwrap();
        assert_eq!(found, Diagnosis { peer: inode(&a), shut: 1, named: false });
        drop(b);
        let found = diagnose(inode(&a)).unwrap();
        assert_eq!((found.peer, found.shut), (0, 3));
        assert!(diagnose(u32::MAX - 1).is_err());
    }
}

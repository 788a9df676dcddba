//! Socket options by number, addresses as bytes, and peeking.

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// The value of an option of level SOL_SOCKET.
pub fn option(fd: &OwnedFd, name: i32) -> io::Result<Vec<u8>> {
    option_at(fd, libc::SOL_SOCKET, name, 16)
}

/// The value of an option of any level, at most `room` bytes.
pub fn option_at(fd: &OwnedFd, level: i32, name: i32, room: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; room];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value` and their number to `len`; both live across the call.
    let got =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    super::check(i64::from(got))?;
    value.truncate(len as usize);
    Ok(value)
}

/// Whether the option takes `value` as a question (MCAST_MSFILTER).
pub fn ask(fd: &OwnedFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `len` bytes of `value`; both live across the call.
    let got =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    super::check(i64::from(got)).map(drop)
}

/// An option of level SOL_SOCKET that is an int.
pub fn integer(fd: &OwnedFd, name: i32) -> io::Result<i32> {
    let value = option(fd, name)?;
    value.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Sets an option of level SOL_SOCKET.
pub fn set_option(fd: &OwnedFd, name: i32, value: &[u8]) -> io::Result<()> {
    set_option_at(fd, libc::SOL_SOCKET, name, value)
}

/// Sets an option of any level.
pub fn set_option_at(fd: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, which lives across the call.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    super::check(i64::from(set)).map(drop)
}

/// socket(2), close-on-exec.
pub fn create(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes three integers.
    let made = super::check(i64::from(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// A connection to the Unix socket at `path`, of this type (SOCK_STREAM, SOCK_SEQPACKET). Whoever listens has so long to take it,
/// and then each message: connect(2) would otherwise wait for as long as others fill the queue.
///
/// # Errors
/// NotFound or ConnectionRefused: nobody listens; WouldBlock: it was not taken in time.
pub fn connect_within(path: &Path, kind: i32, patience: Duration) -> io::Result<OwnedFd> {
    let (made, address) = (create(libc::AF_UNIX, kind, 0)?, UnixAddr::new(path)?);
    // struct timeval.
    let time = [patience.as_secs(), u64::from(patience.subsec_micros())].map(u64::to_ne_bytes).concat();
    set_option(&made, libc::SO_SNDTIMEO, &time)?;
    loop {
        match nix::sys::socket::connect(made.as_raw_fd(), &address) {
            Err(Errno::EINTR) => {}
            done => return Ok(done.map(|()| made)?),
        }
    }
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

/// Its own address (getsockname(2)), as bind(2) takes it.
pub fn address(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    name(fd, libc::getsockname)
}

/// The address that it is connected to (getpeername(2)).
pub fn peer_address(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    name(fd, libc::getpeername)
}

fn name(fd: &OwnedFd, call: NameCall) -> io::Result<Vec<u8>> {
    let mut address = vec![0u8; size_of::<libc::sockaddr_storage>()];
    let mut len = address.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `address` and its length to `len`; both live across the call. Of a
    // Unix address the length may count a nul that has no room, and no byte that was written is behind the room.
    let got = unsafe { call(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    super::check(i64::from(got))?;
    address.truncate(len as usize);
    Ok(address)
}

/// bind(2).
pub fn bind(fd: &OwnedFd, address: &[u8]) -> io::Result<()> {
    let len = address.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `address`, which lives across the call.
    let done = unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), len) };
    super::check(i64::from(done)).map(drop)
}

/// connect(2).
pub fn connect(fd: &OwnedFd, address: &[u8]) -> io::Result<()> {
    let len = address.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `address`, which lives across the call.
    let done = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), len) };
    super::check(i64::from(done)).map(drop)
}

/// listen(2).
pub fn listen(fd: &OwnedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: listen takes two integers.
    super::check(i64::from(unsafe { libc::listen(fd.as_raw_fd(), backlog) })).map(drop)
}

/// accept4(2), close-on-exec; who it is is not asked.
pub fn accept(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let nobody = std::ptr::null_mut();
    // SAFETY: with null pointers the kernel writes no address.
    let made = unsafe { libc::accept4(fd.as_raw_fd(), nobody, std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    let made = super::check(i64::from(made))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// The file that a Unix socket is bound to, as a descriptor of its name alone (O_PATH).
///
/// # Errors
/// ENOENT when it is bound to none.
pub fn bound_file(fd: &OwnedFd) -> io::Result<OwnedFd> {
    /// linux/un.h
    const SIOCUNIXFILE: libc::Ioctl = 0x89e0;
    // SAFETY: this ioctl takes no argument and gives a number.
    let made = super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) }))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it. It is not close-on-exec; it is
    // closed before anything is executed.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// Bytes that wait to be read: of a stream all, of others those of the first message.
pub fn waiting(fd: &OwnedFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `bytes`, which lives across the call.
    super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }))?;
    Ok(bytes as usize)
}

/// Bytes of a TCP stream that the other end has not acknowledged, where its end counts as one; of UDP, memory of packets that
/// have not left.
pub fn unacknowledged(fd: &OwnedFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (linux/sockios.h): the kernel writes one int to `bytes`, which lives across the call.
    super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }))?;
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

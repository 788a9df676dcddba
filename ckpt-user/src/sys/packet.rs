//! Messages with descriptors over Unix sockets of type SOCK_SEQPACKET (unix(7)), and who is at the other end.

use super::socket;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt::PassCred};
use nix::unistd::Pid;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Descriptors that a message may bring.
pub const DESCRIPTORS: usize = 8;

/// A message as it came.
#[derive(Debug, Default)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
    /// Who has sent it, as our pid namespace numbers processes, by the kernel's word: of a socket that [`tell_senders`] was
    /// called for before it was sent, and of a process that can be seen from here.
    pub sender: Option<Pid>,
}

/// Sends a message whole, with at most as many descriptors as the other end takes; `flags` may be MSG_DONTWAIT.
///
/// # Errors
/// EPIPE when nobody is at the other end any more, EMSGSIZE when it is too long for the socket's buffer.
pub fn send(to: BorrowedFd<'_>, bytes: &[u8], with: &[BorrowedFd<'_>], flags: MsgFlags) -> io::Result<()> {
    let numbers: Vec<RawFd> = with.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Err(nix::errno::Errno::EINTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// The next message, of at most `room` bytes; none once the other end is closed. Descriptors are close-on-exec.
///
/// # Errors
/// InvalidData when it is longer, or brings more descriptors than [`DESCRIPTORS`] or than this process can have: those that
/// came are closed. EAGAIN with MSG_DONTWAIT.
pub fn receive(from: BorrowedFd<'_>, room: usize, flags: MsgFlags) -> io::Result<Option<Packet>> {
    receive_with(from, room, DESCRIPTORS, flags)
}

/// The same with another number of descriptors, at most [`MOST_DESCRIPTORS`].
///
/// # Errors
/// As [`receive`].
pub fn receive_with(
    from: BorrowedFd<'_>,
    room: usize,
    most: usize,
    flags: MsgFlags,
) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0u8; room];
    let mut control = [0u64; CONTROL / 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid msghdr: no address, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), CONTROL);
    let flags = (flags | MsgFlags::MSG_CMSG_CLOEXEC).bits();
    let mut was_reset = false;
    let length = loop {
        // SAFETY: `message`, and all that it refers to, lives across the call, with the lengths that it says.
        match super::check(unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, flags) } as i64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The other end was closed with a message of ours unread, and may have answered before (`unix_release_sock`): that
            // is told once, and the answer is there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !was_reset => was_reset = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && was_reset => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            got => break got? as usize,
        }
    };
    let (descriptors, sender) = taken_out(&message);
    let is_cut = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    if is_cut || descriptors.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is larger than any of ours"));
    }
    bytes.truncate(length);
    // No message of ours is empty.
    Ok((length > 0).then_some(Packet { bytes, descriptors, sender }))
}

/// `SCM_MAX_FD` of include/net/scm.h.
pub const MOST_DESCRIPTORS: usize = 253;

/// Room for as many descriptors as a message can bring, so that the kernel does not cut them, and for what is not asked for.
const CONTROL: usize = 2048;

/// From here on every message to this socket says who has sent it (SO_PASSCRED).
///
/// # Errors
/// setsockopt(2).
pub fn tell_senders(socket: &OwnedFd) -> io::Result<()> {
    Ok(setsockopt(socket, PassCred, &true)?)
}

/// Every descriptor that has come with a message, whatever else is wrong with it, and its sender.
fn taken_out(message: &libc::msghdr) -> (Vec<OwnedFd>, Option<Pid>) {
    let (mut descriptors, mut sender) = (Vec::new(), None);
    // SAFETY: recvmsg(2) has filled the control data of `message` and set its length; the macros of cmsg(3) stay in it. Each
    // number of SCM_RIGHTS is a descriptor that the kernel has just made for us, and nobody else owns it. What comes as
    // SCM_CREDENTIALS is a ucred, which is numbers.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(one) = header.as_ref() {
            if (one.cmsg_level, one.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = one.cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                let numbers = (0..bytes / size_of::<RawFd>()).map(|n| first.add(n).read_unaligned());
                descriptors.extend(numbers.map(|n| OwnedFd::from_raw_fd(n)));
            } else if (one.cmsg_level, one.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
                let pid = libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned().pid;
                sender = (pid > 0).then(|| Pid::from_raw(pid));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    (descriptors, sender)
}

/// For a task of tokio's that waits for it; who has it closes it, at a time that is right for it.
///
/// # Errors
/// epoll_ctl(2).
pub fn watched(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an OwnedFd is open, and refers to the same description, for as long as it is there; its number does not change.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Whether others may send descriptors to this socket, or to those that it accepts (SO_PASSRIGHTS, Linux 6.16). One that was sent
/// is closed by whoever closes the socket, received or not. Kernels without it take them always.
pub fn take_descriptors(socket: &OwnedFd, does: bool) {
    const SO_PASSRIGHTS: i32 = 83;
    let _ = socket::set_option(socket, SO_PASSRIGHTS, &i32::from(does).to_ne_bytes());
}

/// The supplementary groups of whoever connected (SO_PEERGROUPS).
pub fn peer_groups(socket: &OwnedFd) -> io::Result<Vec<u32>> {
    /// `NGROUPS_MAX` of linux/limits.h, of four bytes each.
    const ROOM: usize = 65536 * 4;
    let bytes = socket::option_at(socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, ROOM)?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// The process that connected (SO_PEERPIDFD, Linux 6.5); none where the kernel has no such thing.
///
/// # Errors
/// It is gone.
pub fn peer_process(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    const SO_PEERPIDFD: i32 = 77;
    let bytes = match socket::option_at(socket, libc::SOL_SOCKET, SO_PEERPIDFD, 4) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => return Ok(None),
        bytes => bytes?,
    };
    let number = bytes.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec; nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn messages_arrive_whole_with_what_they_bring_and_end_with_the_sender() {
        let (one, other) = pair();
        let file = File::open("/proc/self/comm").unwrap();
        send(one.as_fd(), b"first", &[file.as_fd()], MsgFlags::empty()).unwrap();
        send(one.as_fd(), b"second", &[], MsgFlags::empty()).unwrap();
        drop(one);
        let first = receive(other.as_fd(), 16, MsgFlags::empty()).unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (&b"first"[..], 1));
        let mut text = String::new();
        File::from(first.descriptors.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert_eq!(receive(other.as_fd(), 16, MsgFlags::empty()).unwrap().unwrap().bytes, b"second");
        assert!(receive(other.as_fd(), 16, MsgFlags::empty()).unwrap().is_none());
    }

    #[test]
    fn what_is_longer_or_brings_too_much_is_refused_and_nothing_of_it_stays_open() {
        let (one, other) = pair();
        send(one.as_fd(), &[1; 17], &[], MsgFlags::empty()).unwrap();
        assert!(receive(other.as_fd(), 16, MsgFlags::empty()).is_err());
        let (from, to) = nix::unistd::pipe().unwrap();
        let many: Vec<BorrowedFd<'_>> = (0..=DESCRIPTORS).map(|_| to.as_fd()).collect();
        send(one.as_fd(), b"x", &many, MsgFlags::empty()).unwrap();
        assert!(receive(other.as_fd(), 16, MsgFlags::empty()).is_err());
        drop(to);
        // All duplicates of its other end are closed.
        assert_eq!(nix::unistd::read(&from, &mut [0]), Ok(0));
        let nothing = receive(other.as_fd(), 16, MsgFlags::MSG_DONTWAIT).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn who_has_sent_a_message_is_told_where_that_was_asked_for() {
        let (one, other) = pair();
        send(one.as_fd(), b"before", &[], MsgFlags::empty()).unwrap();
        tell_senders(&other).unwrap();
        send(one.as_fd(), b"after", &[other.as_fd()], MsgFlags::empty()).unwrap();
        let next = || receive(other.as_fd(), 16, MsgFlags::empty()).unwrap().unwrap();
        assert_eq!(next().sender, None);
        let after = next();
        assert_eq!((after.sender, after.descriptors.len()), (Some(nix::unistd::Pid::this()), 1));
    }

    #[test]
    fn who_is_at_the_other_end_is_told_by_the_kernel() {
        let (one, _other) = pair();
        let own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(peer_groups(&one).unwrap(), own);
        if let Some(process) = peer_process(&one).unwrap() {
            assert_eq!(super::super::pidfd::names(process.as_fd()).unwrap(), Some(nix::unistd::Pid::this()));
        }
    }
}

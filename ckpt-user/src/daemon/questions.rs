//! What a worker asks its core's eBPF programs, over a connection of their own that it is started with.
//!
//! ```text
//! worker ── Ask{question, number} + pidfds: its own, then of those that it asks about ──▶ core
//!        ◀── number, Telling{error, length}, and so many bytes, in packets that begin with the number; or a descriptor
//! ```
//! By the number an answer that comes late, when nobody waits for it any more, is told from that to the next question.
//!
//! A core tells of what the asking process *traces* and of nothing else: the eBPF programs look, row by row, who traces the task
//! (`ckpt-ebpf/src/filter.rs`). Who traces a process may read all of its memory and run any call in it, so rows say nothing that
//! it may not know; where things are in the kernel is hidden ([`super::veil`]). Who asks is told by the kernel with each message
//! (SCM_CREDENTIALS), and is held by its pidfd until the answer is there.

use super::wire;
use crate::sys::packet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `Header::kind` of both.
pub const ASK: u16 = 0x90;
pub const TELLING: u16 = 0x91;

/// [`Ask::question`] for what this kernel's words mean; the others are
/// [`Question`](crate::task::iterators::rows::Question)s.
pub const LESSONS: u32 = 0;

/// [`Ask::question`] for a descriptor of the shared memory behind a mapping ([`super::object`]).
pub const OBJECT: u32 = 0x100;

/// How many processes one question may be about.
pub const MOST: usize = 128;

/// Bytes of the longest answer.
pub const ROOM: usize = 16 << 20;

/// How long it may take to find it.
pub const TIME: Duration = Duration::from_secs(1);

/// How long either side waits for the other, for all of an answer: a program may stand still meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Ask {
    pub question: u32,
    pub reserved: u32,
    /// Which of this worker's it is: none has that of another.
    pub number: u64,
    /// Of [`OBJECT`]: the mapping's addresses; else 0.
    pub start: u64,
    pub end: u64,
}

impl Ask {
    /// One that is about no mapping.
    pub fn of(question: u32) -> Self {
        Self { question, reserved: 0, number: 0, start: 0, end: 0 }
    }
}

/// What is told.
#[derive(Debug, Default)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub descriptor: Option<OwnedFd>,
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, descriptor: None }
    }
}

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Telling {
    /// An error number; 0 for none.
    pub error: u32,
    /// Bytes that follow, at most [`ROOM`].
    pub length: u32,
}

/// Sends an answer to question `number`: the head with what there is room for, and the rest packet by packet.
///
/// # Errors
/// The other end is gone, or does not take it.
pub fn tell(to: &OwnedFd, number: u64, answer: &Result<Answer, i32>) -> io::Result<()> {
    let (error, bytes, with) = match answer {
        Ok(Answer { bytes, descriptor }) => (0, bytes.as_slice(), descriptor.as_ref()),
        Err(error) => (error.unsigned_abs(), &[][..], None),
    };
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let head = Telling { error, length };
    let room = wire::LIMIT - size_of::<wire::Header>() - size_of::<u64>() - size_of::<Telling>();
    let (first, rest) = bytes.split_at(bytes.len().min(room));
    let until = Instant::now() + PATIENCE;
    let number = number.as_bytes();
    send(to, &[number, head.as_bytes(), first].concat(), with, until)?;
    rest.chunks(room).try_for_each(|part| send(to, &[number, part].concat(), None, until))
}

fn send(to: &OwnedFd, body: &[u8], with: Option<&OwnedFd>, until: Instant) -> io::Result<()> {
    let with: Vec<BorrowedFd<'_>> = with.into_iter().map(AsFd::as_fd).collect();
    let message = wire::join(TELLING, body);
    loop {
        wait(to.as_fd(), PollFlags::POLLOUT, until)?;
        match packet::send(to.as_fd(), &message, &with, MsgFlags::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
    }
}

/// Takes in the answer to question `number`; what is late of others is thrown away.
///
/// # Errors
/// The other end is gone, says nothing in time (`TimedOut`), or nothing that can be understood. An error that it tells is inside.
pub fn hear(from: &OwnedFd, number: u64) -> io::Result<Result<Answer, io::Error>> {
    let until = Instant::now() + PATIENCE;
    let (first, descriptor) = next(from, number, until)?;
    let (head, first) = Telling::read_from_prefix(&first).map_err(|_| wrong())?;
    if head.error != 0 {
        return Ok(Err(io::Error::from_raw_os_error(head.error.cast_signed())));
    }
    let length = head.length as usize;
    let mut bytes = first.to_vec();
    while bytes.len() < length {
        let (part, _) = next(from, number, until)?;
        if part.is_empty() {
            return Err(wrong());
        }
        bytes.extend(part);
    }
    if length > ROOM || bytes.len() != length { Err(wrong()) } else { Ok(Ok(Answer { bytes, descriptor })) }
}

fn next(from: &OwnedFd, number: u64, until: Instant) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    loop {
        wait(from.as_fd(), PollFlags::POLLIN, until)?;
        let packet = match packet::receive(from.as_fd(), wire::LIMIT, MsgFlags::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            got => got?.ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionReset, "it is gone"))?,
        };
        let (of, body) = match wire::split(&packet.bytes) {
            Ok((header, body)) if header.kind == TELLING => {
                u64::read_from_prefix(body).map_err(|_| wrong())?
            }
            _ => return Err(wrong()),
        };
        if of == number {
            return Ok((body.to_vec(), packet.descriptors.into_iter().next()));
        }
    }
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags, until: Instant) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, what)];
    let left = until.saturating_duration_since(Instant::now());
    match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
        Err(nix::errno::Errno::EINTR) | Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn wrong() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer cannot be understood")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn answers_of_any_length_arrive() {
        for length in [0, 1, wire::LIMIT - 20, wire::LIMIT, 5 * wire::LIMIT + 7] {
            let (one, other) = pair();
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let answer = Ok(Answer::from(bytes.clone()));
            let teller = std::thread::spawn(move || tell(&one, 7, &answer));
            assert_eq!(hear(&other, 7).unwrap().unwrap().bytes, bytes);
            teller.join().unwrap().unwrap();
        }
        let (one, other) = pair();
        tell(&one, 8, &Err(libc::E2BIG)).unwrap();
        assert_eq!(hear(&other, 8).unwrap().unwrap_err().raw_os_error(), Some(libc::E2BIG));
        let file = std::fs::File::open("/proc/self/comm").unwrap();
        let answer = Answer { bytes: Vec::new(), descriptor: Some(file.into()) };
        tell(&one, 9, &Ok(answer)).unwrap();
        let told = hear(&other, 9).unwrap().unwrap().descriptor.unwrap();
        assert!(!std::io::read_to_string(std::fs::File::from(told)).unwrap().is_empty());
    }

    #[test]
    fn half_an_answer_and_none_are_errors() {
        let (one, other) = pair();
        let head = Telling { error: 0, length: 10 };
        let one_of_7 = 7u64.as_bytes();
        send(&one, &[one_of_7, head.as_bytes(), b"five!"].concat(), None, Instant::now() + PATIENCE).unwrap();
        drop(one);
        assert_eq!(hear(&other, 7).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (one, other) = pair();
        send(&one, &[one_of_7, head.as_bytes(), b"eleven bytes"].concat(), None, Instant::now() + PATIENCE)
            .unwrap();
        assert_eq!(hear(&other, 7).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    #[test]
    fn an_answer_that_is_late_is_not_taken_for_another() {
        let (one, other) = pair();
        let long = vec![1; 2 * wire::LIMIT];
        let teller = std::thread::spawn(move || {
            tell(&one, 1, &Ok(long.into())).unwrap();
            tell(&one, 2, &Ok(vec![2].into())).unwrap();
            one
        });
        assert_eq!(hear(&other, 2).unwrap().unwrap().bytes, [2]);
        let one = teller.join().unwrap();
        tell(&one, 3, &Ok(vec![3].into())).unwrap();
        assert_eq!(hear(&other, 4).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

//! What front and worker say to each other: both are the user's, and neither believes the other more than any other input.
//!
//! ```text
//! front: ckptbpf launch                                 worker
//!   ◀── Challenge ── a secret in a process of the user's
//!   ─── Answer ────▶
//!   ─── Go ────────▶ the command line, the directory that we are in, standard streams
//!   ◀── Run ──────── the job's directory is claimed                        (or Done: it has said why not)
//!   ─── Started ───▶ the program's process id                              (or Over: it cannot be run)
//!   ◀── Running ──── others can find the job
//!   ─── Programs ──▶ a connection with the eBPF programs of another core    (asked for by the same word)
//!   ─── Signal, Ended, Over ──▶     a signal of the job's; its first process has ended; nothing is left of it
//!   ◀── Done ─────── what to exit with
//!
//! restart, after Go:
//!   ◀── Split ────── the program needs a namespace of its own
//!   ─── Kept ──────▶ init of one, and a link to that: from here on the worker works in there
//!   ◀── Program ──── its pidfd, before it runs                             (then Running)
//!
//! and where no such namespace can be had (Made, with why):
//!   ◀── Here ─────── its processes are to be the front's own children
//!   ─── Started ───▶ what other children there are
//!   ◀── Fork ─────── each of those that are the front's; answered by Made
//!   ◀── Terminal, Foreground ──  the session's; each is answered by Made    (then Program, and as after a launch)
//!
//! init ─── Made ────────▶ front     it is there, or why not
//!      ─── Stopped ─────▶           the program has been stopped
//! init ◀── Clocks, Fork ── worker   of the program's processes, which are init's; each is answered by Made
//!      ◀── Terminal, Foreground ──  which is its session's; each is answered by Made
//!      ◀── Root ──────────          that one is the first
//!      ─── Ended, Over ──▶
//!
//! a process that Yama does not let the worker trace:
//!   ◀── Admit ────── Admitted comes by a socket of its own (super::admission)
//!
//! should the worker be killed:
//!   ◀── Heir ─────── said in good time: what the one in its place has to know
//!   ─── Go ────────▶ to that one, with the Heir; then Started, or Kept with the program's pidfd
//!   ◀── Running ──── as ever
//! init ◀── Kept ── front            its link to that one
//!
//! attach, checkpoint PID, after Go:
//!   ◀── Show ─────── may you trace this process?
//!   ─── Kept ──────▶ its memory, which the kernel has opened for the front  (or Made: why not)
//!   ◀── Running ──── it is supervised; a front without a program tells signals alone
//! ```

use super::wire;
use crate::sys::packet::{self, Packet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use prost::Message;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A process that holds a secret, and where.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Secret {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(uint64, tag = "2")]
    pub address: u64,
}

/// The bit of the session's terminal in [`Go::streams`].
pub const TERMINAL: u32 = 1 << 3;

/// The command line is in a descriptor of its own ([`super::asked`]); the directory and the standard streams come with it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Go {
    /// Standard streams that are open, as bits, and [`TERMINAL`]; so many descriptors come after the two.
    #[prost(uint32, tag = "1")]
    pub streams: u32,
    /// Where the daemon listens.
    #[prost(bytes = "vec", tag = "2")]
    pub place: Vec<u8>,
    /// The session keyring that the program begins with: serial number and name.
    #[prost(int32, tag = "3")]
    pub keyring: i32,
    #[prost(bytes = "vec", tag = "4")]
    pub keyring_name: Vec<u8>,
    /// The program runs: it was the job of a worker that was killed.
    #[prost(message, optional, tag = "5")]
    pub heir: Option<Heir>,
}

/// What a worker knows, and the one in its place does not.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Heir {
    /// The job's directory, from the root.
    #[prost(bytes = "vec", tag = "1")]
    pub dir: Vec<u8>,
    /// [`crate::machine::Baseline::name`]; empty: none.
    #[prost(string, tag = "2")]
    pub cpu_baseline: String,
    /// CPU time that the program's processes had had at the restart, in nanoseconds.
    #[prost(uint64, tag = "3")]
    pub cpu_time_before: u64,
}

/// The job's directory is there, and the program may run.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Run {
    /// The signals that the front keeps for the worker (`job::options::bit`).
    #[prost(uint64, tag = "2")]
    pub kept: u64,
}

/// The program's first process.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Started {
    /// Whose children are the program's.
    #[prost(int32, tag = "1")]
    pub keeper: i32,
    /// Children of the keeper that were there before.
    #[prost(int32, repeated, tag = "2")]
    pub strangers: Vec<i32>,
    /// Its process id, 0 before a restart has made it; it is not waited for before the worker has said Running.
    #[prost(int32, tag = "3")]
    pub root: i32,
}

/// Process ids in a new namespace.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Share {
    /// The worker's.
    #[prost(int32, tag = "1")]
    pub supervisor: i32,
    /// What is started without a wish gets the ids after this one.
    #[prost(int32, tag = "2")]
    pub last: i32,
}

/// What clocks of children are to be ahead of init's, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Offsets {
    #[prost(int64, tag = "1")]
    pub monotonic: i64,
    #[prost(int64, tag = "2")]
    pub boottime: i64,
}

/// A process that waits to be taken over; a socket comes with this, which is the one descriptor that it has.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Fork {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Number of the socket.
    #[prost(int32, tag = "2")]
    pub door: i32,
}

/// What has come of [`Word::Admit`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Admitted {
    /// Why the worker may not trace it; nothing: it may, or there is nobody to be traced any more.
    #[prost(string, tag = "1")]
    pub refused: String,
    /// It did not stand still in time, and may the next time.
    #[prost(bool, tag = "2")]
    pub not_yet: bool,
}

/// One message.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Word {
    #[prost(message, tag = "1")]
    Challenge(Secret),
    #[prost(bytes, tag = "2")]
    Answer(Vec<u8>),
    #[prost(message, tag = "3")]
    Go(Go),
    #[prost(message, tag = "4")]
    Run(Run),
    #[prost(message, tag = "5")]
    Started(Started),
    /// The front's: others can find the job.
    #[prost(bool, tag = "6")]
    Running(bool),
    /// A signal that the worker is to take; less than 0 where the program has got it, too.
    #[prost(int32, tag = "7")]
    Signal(i32),
    /// How the program's first process has ended (wait(2)).
    #[prost(int32, tag = "8")]
    Ended(i32),
    /// Nothing is left of the program.
    #[prost(bool, tag = "9")]
    Over(bool),
    /// What to exit with.
    #[prost(uint32, tag = "10")]
    Done(u32),
    #[prost(message, tag = "11")]
    Split(Share),
    #[prost(bool, tag = "12")]
    Kept(bool),
    #[prost(message, tag = "13")]
    Clocks(Offsets),
    #[prost(message, tag = "14")]
    Fork(Fork),
    /// A process id, 0, or an error number below 0.
    #[prost(sint32, tag = "15")]
    Made(i32),
    #[prost(int32, tag = "16")]
    Root(i32),
    #[prost(message, tag = "17")]
    Program(Run),
    #[prost(bool, tag = "18")]
    Stopped(bool),
    /// A process that the worker may not trace, and is to; the socket for the answer comes with this.
    #[prost(int32, tag = "19")]
    Admit(i32),
    #[prost(message, tag = "20")]
    Admitted(Admitted),
    #[prost(message, tag = "21")]
    Heir(Heir),
    /// Open the session's terminal with these flags (open(2)): it comes with the answer.
    #[prost(int32, tag = "22")]
    Terminal(i32),
    /// That process group is to have it.
    #[prost(int32, tag = "23")]
    Foreground(i32),
    #[prost(bool, tag = "24")]
    Here(bool),
    /// Show that you may trace the process with this id ([`crate::front::beside`]).
    #[prost(int32, tag = "25")]
    Show(i32),
    /// A worker whose core is gone wants another one's programs; the connection comes with the answer, if there is one.
    #[prost(bool, tag = "30")]
    Programs(bool),
}

impl Word {
    /// What has come of something.
    pub fn made(done: io::Result<i32>) -> Self {
        Self::Made(done.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = Said { word: Some(self.clone()) }.encode_to_vec();
        wire::join(wire::kind::OF_LINKS, &body)
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Said {
    #[prost(
        oneof = "Word",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 30"
    )]
    word: Option<Word>,
}

/// One end of it.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// The process at the other end, where it is known (a pidfd): its death is the end of the link.
    other: Option<OwnedFd>,
}

/// What has come.
#[derive(Debug)]
pub struct Heard {
    pub word: Word,
    pub descriptors: Vec<OwnedFd>,
}

impl Link {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, other: None }
    }

    /// The same with a process at the other end.
    pub fn with(socket: OwnedFd, other: OwnedFd) -> Self {
        Self { socket, other: Some(other) }
    }

    /// What becomes readable when there is something to hear, or the end.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.socket.as_fd()).chain(self.other.iter().map(AsFd::as_fd))
    }

    /// # Errors
    /// EPIPE when nobody is at the other end.
    pub fn say(&self, word: &Word, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        packet::send(self.socket.as_fd(), &word.to_bytes(), with, MsgFlags::empty())
    }

    /// Says `word` with what was opened, or [`Word::Made`] with why it was not.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub fn say_opened(&self, word: &Word, opened: io::Result<File>) -> io::Result<()> {
        match opened {
            Ok(opened) => self.say(word, &[opened.as_fd()]),
            Err(error) => self.say(&Word::made(Err(error)), &[]),
        }
    }

    /// In the place of the core, while there is no job yet.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub fn refuse(&self, refusal: wire::Refusal) -> io::Result<()> {
        let message = wire::Message::from(refusal).to_bytes();
        packet::send(self.socket.as_fd(), &message, &[], MsgFlags::MSG_DONTWAIT)
    }

    /// The next message; none when the other end is closed. Waits for it.
    ///
    /// # Errors
    /// InvalidData when it is none of ours; [`Refused`] when it is the core's.
    pub fn hear(&self) -> io::Result<Option<Heard>> {
        self.heard_by(PollTimeout::NONE)
    }

    /// The same for so many milliseconds.
    ///
    /// # Errors
    /// TimedOut, too.
    pub fn hear_within(&self, patience: u16) -> io::Result<Option<Heard>> {
        self.heard_by(PollTimeout::from(patience))
    }

    fn heard_by(&self, patience: PollTimeout) -> io::Result<Option<Heard>> {
        loop {
            let mut fds: Vec<PollFd<'_>> = self.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, patience) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.hear_what_waits() {
                Ok(None) => {}
                Ok(heard) => return Ok(heard),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next message that is there; none when there is no such.
    ///
    /// # Errors
    /// As [`Self::hear`]; ConnectionReset when the other end is closed, or its process gone.
    pub fn hear_what_waits(&self) -> io::Result<Option<Heard>> {
        match self.heard(MsgFlags::MSG_DONTWAIT) {
            Ok(None) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.other.as_ref().is_some_and(has_ended) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Ok(None)
            }
            heard => heard,
        }
    }

    fn heard(&self, flags: MsgFlags) -> io::Result<Option<Heard>> {
        let Some(packet) = packet::receive(self.socket.as_fd(), wire::LIMIT, flags)? else { return Ok(None) };
        let Packet { bytes, descriptors, .. } = packet;
        understood(&bytes).map(|word| Some(Heard { word, descriptors }))
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The core's answer where a worker's was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.told())]
pub struct Refused(pub wire::Refusal);

/// The word of a message.
///
/// # Errors
/// As [`Link::hear`].
pub fn understood(bytes: &[u8]) -> io::Result<Word> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let (header, body) = wire::split(bytes).map_err(|refusal| io::Error::other(Refused(refusal)))?;
    if header.kind == wire::kind::REFUSED
        && let Ok(wire::Message::Refused(refused)) = wire::Message::parse(bytes)
    {
        let refusal = wire::Refusal::of(refused.reason).unwrap_or(wire::Refusal::Failed);
        return Err(io::Error::other(Refused(refusal)));
    }
    if header.kind != wire::kind::OF_LINKS {
        return Err(wrong("a message that is not for here"));
    }
    let said = Said::decode(body).map_err(|_| wrong("a message that cannot be read"))?;
    said.word.ok_or_else(|| wrong("a message of a kind that there is not"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (Link, Link) {
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (one, other) = socketpair(kind.0, kind.1, None, kind.2).unwrap();
        (Link::new(one), Link::new(other))
    }

    #[test]
    fn words_arrive_in_their_order_and_the_end_is_told() {
        let (front, worker) = pair();
        let started = Started { keeper: 7, strangers: vec![8, 9], root: 10 };
        let words = [
            Word::Challenge(Secret { pid: 3, address: 1 << 40 }),
            Word::Answer(vec![0; 16]),
            Word::Go(Go { streams: 7, place: b"/run/d".to_vec(), ..Go::default() }),
            Word::Run(Run { kept: 1 << 9 }),
            Word::Started(started),
            Word::Running(true),
            Word::Signal(10),
            Word::Ended(0x0100),
            Word::Over(true),
            Word::Done(85),
            Word::Split(Share { supervisor: 32765, last: 300 }),
            Word::Clocks(Offsets { monotonic: -1, boottime: i64::MAX }),
            Word::Fork(Fork { pid: 17, door: 40 }),
            Word::Made(-libc::EEXIST),
            Word::Admit(17),
            Word::Admitted(Admitted { refused: "it does not stop".to_owned(), not_yet: true }),
            Word::Heir(Heir { dir: vec![b'/', 0xff], cpu_baseline: "v2".into(), cpu_time_before: 7 }),
            Word::Terminal(libc::O_RDWR),
            Word::Foreground(4711),
            Word::Here(true),
            Word::Show(42),
            Word::Programs(true),
        ];
        words.iter().for_each(|word| front.say(word, &[]).unwrap());
        for word in words {
            assert_eq!(worker.hear_what_waits().unwrap().unwrap().word, word);
        }
        assert!(worker.hear_what_waits().unwrap().is_none());
        drop(front);
        assert_eq!(worker.hear_what_waits().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(worker.hear().unwrap().is_none());
        assert!(worker.say(&Word::Over(true), &[]).is_err());
    }

    #[test]
    fn a_refusal_of_the_core_is_told_as_one_and_anything_else_is_an_error() {
        let refusal: wire::Message = wire::Refusal::Workers.into();
        let error = understood(&refusal.to_bytes()).unwrap_err();
        let refused = error.get_ref().and_then(|e| e.downcast_ref::<Refused>());
        assert_eq!(refused, Some(&Refused(wire::Refusal::Workers)));
        for body in [&[][..], &[0xff; 9], &[0x7a, 0]] {
            assert!(understood(&wire::join(wire::kind::OF_LINKS, body)).is_err());
        }
        assert!(understood(&wire::join(77, &[])).is_err());
    }
}

//! What is said to the core: messages of fixed size over a socket of type SOCK_SEQPACKET, one a packet.
//!
//! ```text
//! client ── Hello{query} ─────────────▶ core        answer: Welcome │ Refused
//!        ── Hello{worker} + pidfd ────▶ core ─▶ worker, which has this very socket from then on   (or Refused)
//!        ── Hello{faults} ────────────▶ core        answer: Device + a descriptor of /dev/userfaultfd
//!             then any number of: Features + a userfaultfd ─▶ Done
//!        ── Hello{ids} ───────────────▶ core        answer: Done
//!             then any number of: NextId ─▶ Done, and NextId{0} when it has been used
//!        ── Hello{programs} ──────────▶ core        answer: Done; then questions by this very socket ([`super::questions`])
//! ```
//! No text and no length of the sender's comes to the core: a message is the header and a struct, or it is refused. All
//! numbers are in the machine's own order; both sides are on one machine. What front and worker say to each other has the
//! same header ([`super::link`]).

use std::io;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "CKD1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"CKD1");
/// Of the messages here and in [`super::link`]: both sides have the same, or do not talk.
pub const VERSION: u16 = 1;
/// Of what this was made of (`build.rs`). A worker is told its front's command line, so a client that wants more than a word has to be of
/// the same build.
pub const BUILD: u32 = number(env!("CKPTBPF_BUILD"));
/// The same of what questions and their answers are made of: other builds may have the same.
pub const ROWS: u32 = number(env!("CKPTBPF_ROWS"));
/// The longest message, its header included.
pub const LIMIT: usize = 64 << 10;

const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 16) {
        Ok(number) => number,
        Err(_) => panic!("build.rs writes a number"),
    }
}

/// What every message begins with: 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    pub magic: u32,
    pub version: u16,
    pub kind: u16,
    /// Bytes that follow it.
    pub length: u32,
}

/// `Header::kind` of messages to and from the core.
pub mod kind {
    pub const HELLO: u16 = 1;
    pub const WELCOME: u16 = 2;
    pub const REFUSED: u16 = 3;
    pub const DEVICE: u16 = 4;
    pub const FEATURES: u16 = 5;
    pub const DONE: u16 = 6;
    pub const NEXT_ID: u16 = 10;
    /// From here on they are the front's and the worker's.
    pub const OF_LINKS: u16 = 0x100;
}

/// The first message of every connection. For a worker it brings the client's own pidfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Hello {
    /// [`QUERY`], [`WORKER`], [`FAULTS`], [`PROGRAMS`] or [`IDS`].
    pub wants: u32,
    /// The client's [`BUILD`]; [`ROWS`] for [`PROGRAMS`].
    pub build: u32,
}

/// Only: who is there?
pub const QUERY: u32 = 1;
/// A worker, who has the connection from then on.
pub const WORKER: u32 = 2;

/// What it takes to serve page faults.
pub const FAULTS: u32 = 3;

/// For a worker of another core, that is gone: what the core's eBPF programs tell.
pub const PROGRAMS: u32 = 4;

/// Process ids of the client's choice.
pub const IDS: u32 = 8;

/// The next process or thread of this machine is to have this id; 0 ends that ([`super::ids`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct NextId {
    pub id: i32,
    pub reserved: u32,
}

/// Have a userfaultfd, which comes with it, agree on these features (UFFDIO_API).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Features {
    pub features: u64,
}

/// An error number; 0 for none. A device comes with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Outcome {
    pub error: u32,
    pub reserved: u32,
}

impl Outcome {
    /// Of something done.
    pub fn of(done: Result<(), &io::Error>) -> Self {
        let number = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO).cast_unsigned();
        Self { error: done.err().map_or(0, number), reserved: 0 }
    }
}

/// The core's answer to a query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Welcome {
    /// Workers that there are of this user, and may be.
    pub workers: u32,
    pub most: u32,
    /// The core's process id.
    pub pid: i32,
    /// Processes of this user's workers that the kernel has killed for the user's own limit of memory.
    pub killed: u32,
    /// The core's [`BUILD`].
    pub build: u32,
}

/// Why the core does not do it; the client has the words ([`Refusal::told`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// Not a message of ours.
    Malformed = 1,
    /// Of another version, or another build of it.
    Version = 2,
    /// The daemon is for another user.
    OtherUser = 3,
    /// The daemon is for another job.
    OtherJob = 4,
    /// As many as this user, or all together, may have.
    Workers = 5,
    /// As many connections as there may be.
    Connections = 6,
    /// The pidfd is missing, or is not the client's.
    Process = 7,
    /// Effective and real ids differ.
    SetId = 8,
    /// It is in another user or pid namespace.
    Namespace = 9,
    /// It is in a root directory of its own.
    Root = 10,
    /// A filter of system calls is on it.
    Filtered = 11,
    /// It may not trace what its own user may: Landlock, a security label, a filter, or Yama.
    Confined = 12,
    /// The worker cannot be started.
    Failed = 13,
    /// Root needs no daemon.
    IsRoot = 14,
    /// It lends no userfaultfd.
    NoFaults = 15,
    /// Too many of this user's have begun just now.
    Often = 16,
    /// It has no eBPF programs.
    NoPrograms = 17,
}

/// [`Refusal`] as it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Refused {
    pub reason: u32,
    pub reserved: u32,
}

impl Refusal {
    const ALL: [Self; 17] = [
        Self::Malformed,
        Self::Version,
        Self::OtherUser,
        Self::OtherJob,
        Self::Workers,
        Self::Connections,
        Self::Process,
        Self::SetId,
        Self::Namespace,
        Self::Root,
        Self::Filtered,
        Self::Confined,
        Self::Failed,
        Self::IsRoot,
        Self::NoFaults,
        Self::Often,
        Self::NoPrograms,
    ];

    /// The one with this number.
    pub fn of(reason: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|one| *one as u32 == reason)
    }

    /// For the person.
    pub fn told(self) -> &'static str {
        match self {
            Self::Malformed => "it does not understand this ckptbpf",
            Self::Version => "it is of another version than this ckptbpf",
            Self::OtherUser => "it is there for another user",
            Self::OtherJob => "it is there for another job",
            Self::Workers => {
                "you have as many jobs with it as a user may have, or all together have as many as there may be"
            }
            Self::Connections => "there are as many connections to it as there may be",
            Self::Process => "it cannot tell which process this is",
            Self::SetId => "this process has the rights of a set-user-id or set-group-id program",
            Self::Namespace => "this process is in a user or pid namespace of its own (a container?)",
            Self::Root => "this process has a root directory of its own (chroot)",
            Self::Filtered => "this process is under a filter of system calls (seccomp)",
            Self::Confined => {
                "this process may not trace its own user's (Landlock, a security label, kernel.yama.ptrace_scope?)"
            }
            Self::Failed => "it cannot start a process for it; its log says why",
            Self::IsRoot => "root needs none",
            Self::NoFaults => "its administrator does not want lazy restarts (--no-lazy)",
            Self::NoPrograms => "it has no eBPF programs; its log says why",
            Self::Often => "too many of your jobs have begun with it just now",
        }
    }
}

/// A message to the core or from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Refused(Refused),
    Device(Outcome),
    Features(Features),
    NextId(NextId),
    Done(Outcome),
}

/// The header of a message, and what follows.
///
/// # Errors
/// [`Refusal::Malformed`], [`Refusal::Version`].
pub fn split(bytes: &[u8]) -> Result<(Header, &[u8]), Refusal> {
    let (header, body) = Header::read_from_prefix(bytes).map_err(|_| Refusal::Malformed)?;
    match header {
        Header { magic, .. } if magic != MAGIC => Err(Refusal::Malformed),
        Header { version, .. } if version != VERSION => Err(Refusal::Version),
        Header { length, .. } if length as usize != body.len() => Err(Refusal::Malformed),
        _ => Ok((header, body)),
    }
}

/// A message of any kind.
pub fn join(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let header = Header { magic: MAGIC, version: VERSION, kind, length };
    [header.as_bytes(), body].concat()
}

impl Message {
    /// # Errors
    /// As [`split`]; [`Refusal::Malformed`] also for a kind that there is not here.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let (header, body) = split(bytes)?;
        match header.kind {
            kind::HELLO => Hello::read_from_bytes(body).map(Self::Hello).ok(),
            kind::WELCOME => Welcome::read_from_bytes(body).map(Self::Welcome).ok(),
            kind::REFUSED => Refused::read_from_bytes(body).map(Self::Refused).ok(),
            kind::DEVICE => Outcome::read_from_bytes(body).map(Self::Device).ok(),
            kind::FEATURES => Features::read_from_bytes(body).map(Self::Features).ok(),
            kind::NEXT_ID => NextId::read_from_bytes(body).map(Self::NextId).ok(),
            kind::DONE => Outcome::read_from_bytes(body).map(Self::Done).ok(),
            _ => None,
        }
        .ok_or(Refusal::Malformed)
    }

    /// As it is sent.
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Hello(body) => join(kind::HELLO, body.as_bytes()),
            Self::Welcome(body) => join(kind::WELCOME, body.as_bytes()),
            Self::Refused(body) => join(kind::REFUSED, body.as_bytes()),
            Self::Device(body) => join(kind::DEVICE, body.as_bytes()),
            Self::Features(body) => join(kind::FEATURES, body.as_bytes()),
            Self::NextId(body) => join(kind::NEXT_ID, body.as_bytes()),
            Self::Done(body) => join(kind::DONE, body.as_bytes()),
        }
    }
}

impl From<Refusal> for Message {
    fn from(reason: Refusal) -> Self {
        Self::Refused(Refused { reason: reason as u32, reserved: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let all = [
            Message::Hello(Hello { wants: WORKER, build: BUILD }),
            Message::Welcome(Welcome { workers: 1, most: 32, pid: 77, killed: 2, build: BUILD }),
            Refusal::SetId.into(),
            Message::Device(Outcome { error: 0, reserved: 0 }),
            Message::Features(Features { features: 1 << 40 }),
            Message::NextId(NextId { id: 4711, reserved: 0 }),
            Message::Done(Outcome { error: 22, reserved: 0 }),
        ];
        for message in all {
            assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
        }
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::of(refusal as u32), Some(refusal));
        }
        assert_eq!((Refusal::of(0), Refusal::of(18)), (None, None));
    }

    #[test]
    fn what_is_half_longer_foreign_or_of_another_version_is_refused() {
        let whole = Message::Hello(Hello { wants: QUERY, build: BUILD }).to_bytes();
        for length in 0..whole.len() {
            assert_eq!(Message::parse(&whole[..length]), Err(Refusal::Malformed), "{length} bytes");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            Message::parse(&bytes)
        };
        assert_eq!(Message::parse(&[&whole[..], &[0]].concat()), Err(Refusal::Malformed));
        assert_eq!(with(0, b'X'), Err(Refusal::Malformed));
        assert_eq!(with(4, 2), Err(Refusal::Version));
        assert_eq!(with(6, 99), Err(Refusal::Malformed));
        assert_eq!(with(8, 7), Err(Refusal::Malformed));
    }
}

//! One file per kind of kernel object behind a descriptor: its record, how it is captured and rebuilt.
//!
//! Objects are rebuilt in ckptbpf itself, before the skeletons are forked from it: descriptions that several
//! processes share are then shared by inheritance, and each process only moves its copies to their numbers.
//!
//! An *open file description* (open(2)) is what descriptors refer to: flags, position, object.

mod apart;
pub mod carried;
pub mod connection;
pub mod deleted;
pub mod endpoint;
pub mod ends;
pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod handle;
pub mod inotify;
pub mod joining;
pub mod known_ends;
pub mod lock;
pub mod memfd;
pub mod named;
pub mod new_sockets;
pub mod option;
pub mod owner;
pub mod pidfd;
pub mod pipe;
pub mod ports;
pub mod proc_file;
pub mod reach;
pub mod seen;
pub mod signalfd;
pub mod socket;
pub mod socket_file;
pub mod streams;
pub mod table;
pub mod tcp_info;
pub mod terminal;
pub mod timerfd;
pub mod udp;

pub use seen::Seen;

use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One open file description.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Description {
    /// Status flags and access mode (O_*), without O_CLOEXEC.
    #[prost(uint32, tag = "1")]
    pub flags: u32,
    #[prost(uint64, tag = "2")]
    pub position: u64,
    /// It was the launcher's own standard stream of this number: the restarter's takes its place. Where it was
    /// several of them, the lowest; each descriptor says which one it goes to.
    #[prost(uint32, optional, tag = "3")]
    pub standard: Option<u32>,
    /// Locks that belong to it.
    #[prost(message, repeated, tag = "4")]
    pub locks: Vec<lock::Lock>,
    #[prost(message, optional, tag = "5")]
    pub signalled: Option<owner::Signalled>,
    #[prost(message, optional, tag = "6")]
    pub lease: Option<lock::Lease>,
    #[prost(oneof = "Object", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 40")]
    pub object: Option<Object>,
}

/// What a description is about.
#[derive(Clone, PartialEq, prost::Oneof, serde::Serialize)]
pub enum Object {
    #[prost(message, tag = "10")]
    File(file::FileRecord),
    #[prost(message, tag = "11")]
    Device(file::DeviceRecord),
    #[prost(message, tag = "12")]
    Pipe(pipe::PipeRecord),
    /// A standard stream whose own kind does not matter (a pipe or socket to the outside).
    #[prost(message, tag = "13")]
    Outside(Outside),
    #[prost(message, tag = "14")]
    Event(eventfd::EventRecord),
    #[prost(message, tag = "15")]
    Epoll(epoll::EpollRecord),
    #[prost(message, tag = "16")]
    Timer(timerfd::TimerRecord),
    #[prost(message, tag = "17")]
    Terminal(terminal::TerminalRecord),
    #[prost(message, tag = "18")]
    Deleted(deleted::DeletedRecord),
    #[prost(message, tag = "19")]
    Signal(signalfd::SignalRecord),
    #[prost(message, tag = "20")]
    Socket(socket::SocketRecord),
    #[prost(message, tag = "21")]
    Pid(pidfd::PidRecord),
    #[prost(message, tag = "22")]
    Proc(proc_file::ProcRecord),
    #[prost(message, tag = "23")]
    Inotify(inotify::InotifyRecord),
    #[prost(message, tag = "24")]
    Endpoint(endpoint::EndpointRecord),
    #[prost(message, tag = "25")]
    Connection(connection::ConnectionRecord),
    #[prost(message, tag = "40")]
    Shared(memfd::SharedRecord),
}

/// The launcher's side of a standard stream, only named.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Outside {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// What rebuilding needs to know beside the records.
pub struct Rebuilding<'a> {
    pub pipes: pipe::Pipes,
    pub deleted: deleted::Files<'a>,
    pub sockets: socket::Sockets,
    /// The image's owner is root.
    pub is_roots: bool,
    /// By index of the image's shared objects.
    pub shared: &'a [OwnedFd],
    /// [`terminal::opened`], by somebody of the program's session.
    pub terminal: &'a dyn Fn(i32) -> io::Result<File>,
}

/// When a description can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the processes, which inherit it.
    First,
    /// When their ids are there.
    Ids,
    /// When they are there as they were, threads and rights included.
    Last,
}

impl Description {
    /// Who has sent what waits in it.
    pub fn senders(&self) -> impl Iterator<Item = &socket::Sender> {
        let waiting = match &self.object {
            Some(Object::Socket(socket)) => socket.waiting.as_slice(),
            _ => &[],
        };
        waiting.iter().filter_map(|message| message.sender.as_ref())
    }

    /// Users and groups that it is given to.
    pub fn owners(&self) -> Vec<(u32, u32)> {
        match &self.object {
            Some(Object::Endpoint(endpoint)) => endpoint.owners().collect(),
            Some(Object::Connection(connection)) => vec![(connection.uid, connection.gid)],
            _ => Vec::new(),
        }
    }

    pub fn stage(&self) -> Stage {
        match &self.object {
            _ if self.standard.is_some() => Stage::First,
            Some(Object::Proc(_)) => Stage::Last,
            Some(Object::Pid(_)) if self.flags & pidfd::THREAD != 0 => Stage::Last,
            Some(Object::Pid(_)) => Stage::Ids,
            _ => Stage::First,
        }
    }

    /// Makes the description anew and gives a descriptor of it.
    ///
    /// # Errors
    /// Named with the object's path or kind.
    pub fn rebuild(&self, context: &mut Rebuilding<'_>) -> io::Result<OwnedFd> {
        // Who is signalled is said later, by the process itself.
        let flags = self.flags & !(libc::O_ASYNC as u32);
        let fd = self.make(flags, context)?;
        let Err(error) = lock::rebuild(&self.locks, &fd) else { return Ok(fd) };
        let inherited = lock::inherited(&self.locks, &fd, self.flags).ok_or(error)?;
        if matches!(self.object, Some(Object::File(_))) {
            lseek(&inherited, i64::try_from(self.position).unwrap_or(0), Whence::SeekSet)?;
        }
        Ok(inherited)
    }

    fn make(&self, flags: u32, context: &mut Rebuilding<'_>) -> io::Result<OwnedFd> {
        match &self.object {
            Some(Object::File(record)) => file::rebuild(record, flags, self.position),
            Some(Object::Device(record)) => file::rebuild_device(record, flags),
            Some(Object::Pipe(record)) => context.pipes.rebuild(record, flags),
            Some(Object::Event(record)) => eventfd::rebuild(record, flags),
            Some(Object::Epoll(_)) => epoll::rebuild(),
            Some(Object::Timer(record)) => timerfd::rebuild(record, flags),
            Some(Object::Terminal(record)) => terminal::rebuild(record, flags, context.terminal),
            Some(Object::Deleted(record)) => context.deleted.rebuild(record, flags, self.position),
            Some(Object::Inotify(record)) => inotify::rebuild(record, flags),
            Some(Object::Signal(record)) => signalfd::rebuild(*record, flags),
            Some(Object::Socket(record)) => context.sockets.rebuild(record, flags),
            Some(Object::Endpoint(record)) => endpoint::rebuild(record, flags, context.is_roots),
            Some(Object::Connection(record)) => joining::rebuild(record, flags),
            Some(Object::Shared(record)) => match context.shared.get(record.object as usize) {
                Some(object) => memfd::reopen(object, flags, self.position),
                None => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "the image lacks the memory behind it"))
                }
            },
            Some(Object::Pid(_) | Object::Proc(_)) => Err(io::Error::other("it comes later")),
            Some(Object::Outside(outside)) => Err(io::Error::other(format!(
                "{} leads out of the program and is no standard stream of this restart",
                outside.name
            ))),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the image holds a descriptor of a kind that this version does not know",
            )),
        }
    }
}

/// A recorded path.
pub(crate) fn path_of(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

//! One file per kind of kernel object behind a descriptor: its record, how it is captured and rebuilt.
//!
//! Objects are rebuilt in ckptbpf itself, before the skeletons are forked from it: descriptions that several
//! processes share are then shared by inheritance, and each process only moves its copies to their numbers.
//!
//! An *open file description* (open(2)) is what descriptors refer to: flags, position, object.

pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod memfd;
pub mod pipe;
pub mod seen;
pub mod table;
pub mod terminal;
pub mod timerfd;

pub use seen::Seen;

use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
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
    #[prost(oneof = "Object", tags = "10, 11, 12, 13, 14, 15, 16, 17, 40")]
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
    /// By index of the image's shared objects.
    pub shared: &'a [OwnedFd],
}

impl Description {
    /// Makes the description anew and gives a descriptor of it.
    ///
    /// # Errors
    /// Named with the object's path or kind.
    pub fn rebuild(&self, context: &mut Rebuilding<'_>) -> io::Result<OwnedFd> {
        match &self.object {
            Some(Object::File(record)) => file::rebuild(record, self.flags, self.position),
            Some(Object::Device(record)) => file::rebuild_device(record, self.flags),
            Some(Object::Pipe(record)) => context.pipes.rebuild(record, self.flags),
            Some(Object::Event(record)) => eventfd::rebuild(record, self.flags),
            Some(Object::Epoll(_)) => epoll::rebuild(),
            Some(Object::Timer(record)) => timerfd::rebuild(record, self.flags),
            Some(Object::Terminal(record)) => terminal::rebuild(record, self.flags),
            Some(Object::Shared(record)) => match context.shared.get(record.object as usize) {
                Some(object) => memfd::reopen(object, self.flags, self.position),
                None => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "the image lacks the memory behind it"))
                }
            },
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
fn path_of(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// Whether the path still leads to the very file.
fn same_by_path(path: &Path, metadata: &Metadata) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.dev() == metadata.dev() && m.ino() == metadata.ino())
}

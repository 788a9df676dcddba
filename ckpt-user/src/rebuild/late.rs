//! Descriptions that can be made only when the processes are there ([`Stage`]). The skeletons inherit something in their
//! place, and each gets them through that: a socket.

use super::objects::Objects;
use super::process::RebuiltProcess;
use super::skeleton::Skeleton;
use super::taken;
use super::{RebuildError, Rebuilding};
use crate::object::connection::ConnectionRecord;
use crate::object::endpoint::{self, EndpointRecord};
use crate::object::epoll::EpollRecord;
use crate::object::inotify::{self, InotifyRecord};
use crate::object::joining::{self, Joining};
use crate::object::socket::Sender;
use crate::object::socket_file::Names;
use crate::object::{Description, Object, Stage, epoll, lock, pidfd, proc_file};
use crate::record::{Image, Process};
use crate::sys::ids::FsIds;
use crate::sys::inject::Call;
use crate::sys::pidfd::{duplicate_to, get_fd};
use crate::sys::remote::Remote;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The way of descriptors into skeletons.
pub struct Door {
    here: OwnedFd,
    there: OwnedFd,
}

impl Door {
    pub fn open() -> io::Result<Self> {
        let (here, there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok(Self { here, there })
    }

    /// What stands in the place of a description until it is there.
    pub fn placeholder(&self) -> io::Result<OwnedFd> {
        self.there.try_clone()
    }

    /// The end that processes have.
    pub fn there(&self) -> BorrowedFd<'_> {
        self.there.as_fd()
    }

    /// Puts `fd` in the place of the placeholder that `remote` has under `number`.
    fn pass(&self, fd: &OwnedFd, remote: &mut Remote, number: u64, flags: u64) -> io::Result<()> {
        self.pass_through(number, fd, remote, number, flags)
    }

    /// Gives `remote`, which has the other end under the number `door`, a duplicate of `fd` under `number`.
    pub fn pass_through(
        &self,
        door: u64,
        fd: &OwnedFd,
        remote: &mut Remote,
        number: u64,
        flags: u64,
    ) -> io::Result<()> {
        let rights = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(self.here.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_DONTWAIT, None)?;
        // struct cmsghdr and one int, struct iovec, struct msghdr.
        let control = remote.data(&[0; 24])?;
        let byte = remote.data(&[0])?;
        let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
        let part = remote.data(&words(&[byte, 1]))?;
        let message = remote.data(&words(&[0, 0, part, 1, control, 24, 0]))?;
        let how = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        remote.call(libc::SYS_recvmsg, &[door, message, how])?;
        let mut got = [0; 24];
        remote.read(control, &mut got)?;
        let (length, new) = (u64_of(&got[..8]), u64_of(&got[16..20]));
        if length < 20 {
            return Err(io::Error::other("the process has no room for another descriptor"));
        }
        if new == number {
            // Here it came to be by chance; its flags are those that it came with.
            let close_on_exec = u64::from(flags & libc::O_CLOEXEC as u64 != 0);
            return remote.call(libc::SYS_fcntl, &[new, libc::F_SETFD as u64, close_on_exec]).map(drop);
        }
        let place = Call::new(libc::SYS_dup3, &[new, number, flags]);
        remote.run_all(&[place, Call::new(libc::SYS_close, &[new])])
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &b| word << 8 | u64::from(b))
}

/// Those that need no more than the ids of processes, before any process is told what it has open.
pub fn by_ids(image: &Image, skeletons: &mut [Skeleton], objects: &mut Objects) -> Result<(), RebuildError> {
    let members = taken::ids(image);
    for (index, description) in image.descriptions.iter().enumerate() {
        let Some(Object::Pid(record)) = &description.object else { continue };
        if description.stage() != Stage::Ids {
            continue;
        }
        let fd =
            pidfd::rebuild(*record, description.flags, &members).rebuilding(record.pid, "a pidfd of it")?;
        let place = &mut objects.descriptions[index];
        for skeleton in &mut *skeletons {
            let number = place.as_raw_fd() as u64;
            objects
                .door
                .pass(&fd, &mut skeleton.remote, number, libc::O_CLOEXEC as u64)
                .rebuilding(record.pid, "a pidfd of it")?;
        }
        duplicate_to(&fd, place).rebuilding(record.pid, "a pidfd of it")?;
    }
    Ok(())
}

/// Sends what waits in sockets, when all that is sent is there, and everybody who has sent it.
pub fn messages(image: &Image, objects: &Objects, is_roots: bool) -> Result<(), RebuildError> {
    let all = image.descriptions.iter().zip(&objects.descriptions);
    let sockets: Vec<_> = all
        .filter_map(|(d, fd)| match &d.object {
            Some(Object::Socket(record)) if d.standard.is_none() => Some((record, fd)),
            _ => None,
        })
        .collect();
    let members = taken::ids(image);
    let is_stranger = |sender: &Sender| !members.contains(&sender.pid);
    let is_last =
        |&index: &u32| image.descriptions.get(index as usize).is_some_and(|d| d.stage() == Stage::Last);
    for message in sockets.iter().flat_map(|(record, _)| &record.waiting) {
        if message.sender.as_ref().is_some_and(is_stranger) || message.descriptions.iter().any(is_last) {
            let what = "a message in it is of nobody in the program, or brings what nobody has yet";
            return Err(RebuildError::Refused(what.to_owned()));
        }
    }
    objects.sockets.finish(&sockets, &objects.descriptions, is_roots).rebuilding(0, "a socket")
}

/// TCP connections, when all that is bound is so.
pub fn connections(image: &Image, objects: &Objects, is_roots: bool) -> Result<(), RebuildError> {
    Joining::of(connected(image, objects).collect(), is_roots).join().rebuilding(0, "a connection")
}

fn connected<'a>(
    image: &'a Image,
    objects: &'a Objects,
) -> impl Iterator<Item = (&'a ConnectionRecord, &'a OwnedFd)> {
    let all = image.descriptions.iter().zip(&objects.descriptions);
    all.filter_map(|(description, fd)| match &description.object {
        Some(Object::Connection(record)) if description.standard.is_none() => Some((record, fd)),
        _ => None,
    })
}

/// The inotify instances of a restart, which watch nothing until it is done.
pub struct Watchers(Vec<(InotifyRecord, OwnedFd)>);

impl Watchers {
    pub fn of(image: &Image, objects: &Objects) -> Result<Self, RebuildError> {
        let all = image.descriptions.iter().zip(&objects.descriptions);
        let watchers = all.filter_map(|(description, fd)| match &description.object {
            Some(Object::Inotify(record)) if description.standard.is_none() => {
                Some(fd.try_clone().map(|fd| (record.clone(), fd)))
            }
            _ => None,
        });
        watchers.collect::<io::Result<_>>().map(Self).rebuilding(0, "an inotify")
    }

    /// The last act before the program runs; as the image's owner.
    pub fn begin(self) -> Result<(), RebuildError> {
        self.0.iter().try_for_each(|(record, fd)| inotify::watch(record, fd)).rebuilding(0, "an inotify")
    }
}

/// The sockets of a restart that are not connected, without their names in the file system, and listening to nobody; and the
/// connections, which share their ports.
pub struct Endpoints {
    sockets: Vec<(usize, EndpointRecord, OwnedFd)>,
    connections: Vec<(ConnectionRecord, OwnedFd)>,
}

impl Endpoints {
    pub fn of(image: &Image, objects: &Objects) -> Result<Self, RebuildError> {
        let all = image.descriptions.iter().zip(&objects.descriptions).enumerate();
        let sockets = all.filter_map(|(index, (description, fd))| match &description.object {
            Some(Object::Endpoint(record)) if description.standard.is_none() => {
                Some(fd.try_clone().map(|fd| (index, record.clone(), fd)))
            }
            _ => None,
        });
        let connections =
            connected(image, objects).map(|(record, fd)| fd.try_clone().map(|fd| (record.clone(), fd)));
        let sockets = sockets.collect::<io::Result<_>>();
        let connections = connections.collect::<io::Result<_>>();
        Ok(Self {
            sockets: sockets.rebuilding(0, "a socket")?,
            connections: connections.rebuilding(0, "a connection")?,
        })
    }

    /// Names are given, and each that listened does again, by the process that had made it so. What is given back is kept
    /// when nothing can fail any more.
    pub fn begin(self, processes: &mut [RebuiltProcess], owner: &FsIds) -> Result<Names, RebuildError> {
        let mut names = Names::of(owner);
        let is_roots = owner.uid == 0;
        for (_, record, fd) in &self.sockets {
            endpoint::finish(record, fd, &mut names).rebuilding(0, "a socket")?;
        }
        for (index, record, fd) in &self.sockets {
            let Some(backlog) = record.backlog else { continue };
            let number = |p: &RebuiltProcess| {
                p.record.descriptors.iter().find(|d| d.description as usize == *index).map(|d| d.number)
            };
            let has = |p: &RebuiltProcess| number(p).is_some();
            let maker = processes.iter().position(|p| p.record.pid == record.listener && has(p));
            let Some(place) = maker.or_else(|| processes.iter().position(has)) else { continue };
            let shares = !record.is_unix() && !self.connections.is_empty();
            if shares {
                joining::share(fd).rebuilding(0, "a socket that listens")?;
            }
            let process = &mut processes[place];
            let number = number(process).map_or(u64::MAX, u64::from);
            let called = process.threads[0].call(libc::SYS_listen, &[number, u64::from(backlog)]);
            called.rebuilding(process.record.pid, "a socket that listens")?;
            if shares {
                endpoint::settle(record, fd, is_roots).rebuilding(0, "a socket that listens")?;
            }
        }
        let mut connections = self.connections.iter();
        connections
            .try_for_each(|(record, fd)| joining::settle(record, fd, is_roots))
            .rebuilding(0, "a connection")?;
        Ok(names)
    }
}

/// The others, when all processes are as they were but for running.
pub fn at_last(
    image: &Image,
    processes: &mut [RebuiltProcess],
    objects: &Objects,
) -> Result<(), RebuildError> {
    let members = taken::ids(image);
    for (index, description) in image.descriptions.iter().enumerate() {
        let has = |p: &Process| p.descriptors.iter().any(|d| d.description as usize == index);
        let Some(first) = processes.iter().position(|p| has(&p.record)) else { continue };
        if description.stage() != Stage::Last {
            continue;
        }
        let fd = make(description, &members, &mut processes[first])?;
        for process in processes.iter_mut().filter(|p| has(&p.record)) {
            let RebuiltProcess { record, threads, .. } = process;
            for one in record.descriptors.iter().filter(|d| d.description as usize == index) {
                let flags = if one.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
                objects
                    .door
                    .pass(&fd, &mut threads[0], u64::from(one.number), flags)
                    .rebuilding(record.pid, "a descriptor")?;
            }
        }
    }
    watch(image, processes)
}

/// The files on which the program has leases, by device and inode.
pub fn leased(image: &Image) -> HashSet<(u64, u64)> {
    image.descriptions.iter().filter(|d| d.lease.is_some()).filter_map(identity).collect()
}

fn identity(description: &Description) -> Option<(u64, u64)> {
    match &description.object {
        Some(Object::File(file)) => Some((file.device, file.inode)),
        _ => None,
    }
}

/// Leases are taken by the first process that has the file, with its rights. Nobody opens the file after that: it is cut back
/// through what is returned, duplicates of the descriptors by which they were taken.
///
/// # Errors
/// Names the file of a lease that cannot be had, as somebody else has it open.
pub fn leases(
    image: &Image,
    processes: &mut [RebuiltProcess],
) -> Result<HashMap<(u64, u64), File>, RebuildError> {
    let mut taken = HashMap::new();
    for (index, description) in image.descriptions.iter().enumerate() {
        let Some(lease) = description.lease else { continue };
        let what = match &description.object {
            Some(Object::File(file)) => format!("the lease on {}", file.path().display()),
            _ => "a lease".to_owned(),
        };
        for RebuiltProcess { record, threads, pidfd, .. } in &mut *processes {
            let Some(one) = record.descriptors.iter().find(|d| d.description as usize == index) else {
                continue;
            };
            lock::rebuild_lease(lease, one.number, &mut threads[0]).rebuilding(record.pid, &what)?;
            if let Some(identity) = identity(description) {
                let fd = get_fd(pidfd.as_fd(), one.number as i32).rebuilding(record.pid, &what)?;
                taken.insert(identity, fd.into());
            }
            break;
        }
    }
    Ok(taken)
}

/// By the first process that has it, with its rights.
fn make(
    description: &Description,
    members: &BTreeSet<i32>,
    process: &mut RebuiltProcess,
) -> Result<OwnedFd, RebuildError> {
    let pid = process.record.pid;
    match &description.object {
        Some(Object::Proc(record)) => {
            let remote = &mut process.threads[0];
            let open = proc_file::rebuild(record, description.flags, description.position, remote);
            let there = open.rebuilding(pid, "a file of /proc")?;
            let fd = get_fd(process.pidfd.as_fd(), there as i32).rebuilding(pid, "a file of /proc")?;
            remote.call(libc::SYS_close, &[there]).rebuilding(pid, "a file of /proc")?;
            Ok(fd)
        }
        Some(Object::Pid(record)) => {
            pidfd::rebuild(*record, description.flags, members).rebuilding(pid, "a pidfd of a thread")
        }
        _ => Err(RebuildError::Refused("it holds a descriptor of no kind".to_owned())),
    }
}

/// Has epolls watch them; each is in the first process that has the epoll, under the number that is watched.
fn watch(image: &Image, processes: &mut [RebuiltProcess]) -> Result<(), RebuildError> {
    let is_last =
        |index: u32| image.descriptions.get(index as usize).is_some_and(|d| d.stage() == Stage::Last);
    for (index, description) in image.descriptions.iter().enumerate() {
        let Some(Object::Epoll(EpollRecord { entries })) = &description.object else { continue };
        let number = |p: &RebuiltProcess| {
            p.record.descriptors.iter().find(|d| d.description as usize == index).map(|d| d.number)
        };
        let Some((process, own)) = processes.iter_mut().find_map(|p| number(p).map(|n| (p, n))) else {
            continue;
        };
        for entry in entries.iter().filter(|e| is_last(e.description)) {
            let pid = process.record.pid;
            epoll::add(entry, u64::from(own), &mut process.threads[0]).rebuilding(pid, "an epoll")?;
        }
    }
    Ok(())
}

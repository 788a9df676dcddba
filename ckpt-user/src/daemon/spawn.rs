//! The core's side of a worker: starts it, and gives it its assignment.
//!
//! The worker is ckptbpf executed anew with an empty environment: nothing of the core's memory is in it, and no descriptor but
//! the assignment's socket (its standard input) and the log (its standard error).

use super::peer::Who;
use super::subgroups::Subgroups;
use super::wire;
use crate::sys::packet;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// What the core tells the worker: ids, then groups, as words; with the front's socket and pidfd, and with a connection to ask its
/// eBPF programs by, if it has any.
const ASSIGNMENT: u16 = 0x80;

/// What the worker tells the core, by the same socket: the process that it shows to its front (a pidfd).
const SHOWN: u16 = 0x81;

/// Whose worker it is to be.
#[derive(Debug)]
pub struct Assignment {
    pub who: Who,
    /// The connection with the front.
    pub front: OwnedFd,
    pub process: OwnedFd,
    /// [`super::told`].
    pub programs: Option<OwnedFd>,
}

/// A worker, whose it is, and the connection that it asks by.
#[derive(Debug)]
pub struct Worker {
    pub process: Child,
    /// Its front's pidfd.
    pub front: OwnedFd,
    /// Our end of the socket that it has its assignment by.
    pub told: OwnedFd,
    pub questions: Option<OwnedFd>,
}

/// Starts one for the client at the other end of `front`, which is `process`.
///
/// # Errors
/// What the kernel says; InvalidData for more groups than a message has room for.
pub fn start(
    who: &Who,
    front: BorrowedFd<'_>,
    process: OwnedFd,
    has_programs: bool,
    subgroups: Option<&Subgroups>,
) -> io::Result<Worker> {
    let (ours, its) = pair()?;
    let asks = if has_programs { Some(pair()?) } else { None };
    let (questions, programs) = asks.unzip();
    if let Some(questions) = &questions {
        packet::tell_senders(questions)?;
    }
    let words = [&[who.pid.as_raw().cast_unsigned(), who.uid, who.gid], who.groups.as_slice()].concat();
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let message = wire::join(ASSIGNMENT, &body);
    if message.len() > wire::LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has too many groups"));
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["daemon", "--worker"]).env_clear().current_dir("/");
    command.stdin(Stdio::from(its)).stdout(Stdio::null());
    let worker = command.spawn()?;
    // It waits for its assignment: of what it takes and starts nothing is outside of its user's group.
    if let Some((subgroups, pid)) = subgroups.zip(worker.id()) {
        subgroups.enter(who.uid, pid)?;
    }
    let with: Vec<BorrowedFd<'_>> =
        [front, process.as_fd()].into_iter().chain(programs.iter().map(AsFd::as_fd)).collect();
    packet::send(ours.as_fd(), &message, &with, MsgFlags::MSG_DONTWAIT)?;
    Ok(Worker { process: worker, front: process, told: ours, questions })
}

/// As a worker: tells the core of a process that its user may keep from being gone, before they can.
///
/// # Errors
/// The core is gone.
pub fn tell_shown(core: BorrowedFd<'_>, process: BorrowedFd<'_>) -> io::Result<()> {
    packet::send(core, &wire::join(SHOWN, &[]), &[process], MsgFlags::MSG_DONTWAIT)
}

/// As the core: what a worker has told by [`tell_shown`].
pub fn shown(by: BorrowedFd<'_>) -> Option<OwnedFd> {
    let told = packet::receive(by, wire::LIMIT, MsgFlags::MSG_DONTWAIT).ok().flatten()?;
    told.descriptors.into_iter().next()
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

impl Assignment {
    /// What this worker's core has to tell.
    ///
    /// # Errors
    /// InvalidData where it was not started by one.
    pub fn receive(from: BorrowedFd<'_>) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "this is for the daemon to start");
        let packet = packet::receive(from, wire::LIMIT, MsgFlags::empty())?.ok_or_else(wrong)?;
        let (header, body) = wire::split(&packet.bytes).map_err(|_| wrong())?;
        let words: Vec<u32> =
            body.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
        let mut descriptors = packet.descriptors.into_iter();
        let (front, process) = descriptors.next().zip(descriptors.next()).ok_or_else(wrong)?;
        let programs = descriptors.next();
        match words.as_slice() {
            [pid, uid, gid, groups @ ..] if header.kind == ASSIGNMENT => {
                let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
                let who = Who { pid, uid: *uid, gid: *gid, groups: groups.to_vec() };
                Ok(Self { who, front, process, programs })
            }
            _ => Err(wrong()),
        }
    }
}

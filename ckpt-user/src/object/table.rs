//! Descriptor tables: which numbers of which process refer to which description.

use super::connection::Connections;
use super::known_ends::Known;
use super::lock::{self, Lock};
use super::socket::{self, Message};
use super::streams::Streams;
use super::{
    Description, Object, Outside, Seen, Stage, carried, ends as file_ends, epoll, eventfd, file, inotify,
    memfd, owner, pidfd as process_fd, pipe, proc_file, signalfd, terminal, timerfd,
};
use crate::freeze::Member;
use crate::memory::capture::Objects;
use crate::refusal::{Reading, Refusal};
use crate::sys::bpf::{FileRow, TOLD};
use crate::sys::pidfd;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// One descriptor of one process.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Descriptor {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// Index into the image's descriptions.
    #[prost(uint32, tag = "2")]
    pub description: u32,
    #[prost(bool, tag = "3")]
    pub close_on_exec: bool,
    /// Which of the restarter's standard streams it is to be.
    #[prost(uint32, optional, tag = "4")]
    pub standard: Option<u32>,
    /// Locks that the process itself has through it.
    #[prost(message, repeated, tag = "5")]
    pub locks: Vec<Lock>,
}

/// The tables with the descriptions that they refer to, in the order in which they are met.
type Tables = (Vec<Vec<Descriptor>>, Vec<Seen>);

/// What all processes have open.
pub struct Captured {
    pub tables: Vec<Vec<Descriptor>>,
    pub descriptions: Vec<Description>,
    /// How many bytes of files were read.
    pub read: u64,
}

/// Captures the tables of all processes of a stopped tree; `known` is what the kernel has said of their descriptors. Without
/// `known_ends` the ends of files are not read.
///
/// Descriptors 0, 1 and 2 of `standards_of` are the standard streams ([`Streams`]); `ended` are processes of the tree that have ended.
///
/// # Errors
/// Names the first descriptor that a restart could not rebuild.
pub fn capture(
    processes: &[Member],
    ended: &[Pid],
    standards_of: Pid,
    known: &HashMap<Pid, Vec<FileRow>>,
    objects: &mut Objects,
    known_ends: Option<&mut Known>,
) -> Result<Captured, Refusal> {
    let rows: Option<Vec<(Pid, &Vec<FileRow>)>> =
        processes.iter().map(|process| Some((process.thread, known.get(&process.pid)?))).collect();
    let (mut tables, found) = rows.map_or_else(|| by_looking(processes), |rows| by_rows(&rows))?;
    // Before any file is asked about: it may be one that this process serves, and it stands still.
    if let Some(server) =
        found.iter().find(|seen| ["dev/fuse", "dev/cuse"].iter().any(|name| seen.target.ends_with(name)))
    {
        return Err(server.refuse("a program that serves a file system (FUSE) cannot be saved"));
    }
    let mut opened: HashMap<Pid, OwnedFd> = HashMap::new();
    let mut ends: Vec<(OwnedFd, Seen)> = Vec::with_capacity(found.len());
    for seen in found {
        let process = match opened.entry(seen.pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(pidfd::of_thread(seen.pid).reading(seen.pid, "pidfd")?),
        };
        ends.push((pidfd::get_fd(process.as_fd(), seen.number).reading(seen.pid, "descriptor")?, seen));
    }
    let streams = Streams::look(&ends, standards_of);
    let mut waiting = carried::look(&mut ends, |index, seen| streams.contains(index, seen))?;
    let streams = streams.of(&ends);
    let connections = connections(&ends, &streams, standards_of)?;
    let pids: Vec<Pid> = processes.iter().map(|process| process.pid).collect();
    let members = [&pids, ended].concat();
    let program = Program { all: &ends, processes: &pids, members: &members, connections: &connections };
    let mut descriptions = ends
        .iter()
        .zip(&streams)
        .enumerate()
        .map(|(index, ((fd, seen), streams))| {
            let waiting = waiting.remove(&index);
            describe(fd, seen, &program, waiting, streams.first().copied(), objects)
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    for descriptor in tables.iter_mut().flatten() {
        let streams = &streams[descriptor.description as usize];
        let own = streams.iter().find(|&&stream| stream == descriptor.number);
        descriptor.standard = own.or(streams.first()).copied();
    }
    let read = known_ends.map_or(0, |known| file_ends::capture(&mut descriptions, &ends, known));
    check_carried(&ends, &descriptions)?;
    own_locks(processes, &mut tables, &ends, &descriptions)?;
    Ok(Captured { tables, descriptions, read })
}

fn connections(ends: &[(OwnedFd, Seen)], streams: &[Vec<u32>], root: Pid) -> Result<Connections, Refusal> {
    let inode = |seen: &Seen| seen.target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    let own = ends.iter().zip(streams).filter(|(_, streams)| streams.is_empty());
    let sockets = own.filter_map(|((fd, seen), _)| Some((inode(seen)?, fd)));
    Connections::look(sockets).reading(root, "connections")
}

/// What comes with messages must be there when they are sent again; and what is open nowhere else has no process that
/// could do anything to it.
fn check_carried(ends: &[(OwnedFd, Seen)], descriptions: &[Description]) -> Result<(), Refusal> {
    for (description, (_, carrier)) in descriptions.iter().zip(ends) {
        let Some(Object::Socket(socket)) = &description.object else { continue };
        for &index in socket.waiting.iter().flat_map(|message| &message.descriptions) {
            if descriptions[index as usize].stage() == Stage::Last {
                let target = ends[index as usize].1.target.display();
                return Err(carrier.refuse(&format!("{target} is on its way in it, which cannot be saved")));
            }
        }
    }
    for (description, (_, seen)) in
        descriptions.iter().zip(ends).filter(|(_, (_, seen))| seen.carried.is_some())
    {
        let needs_a_process = description.signalled.is_some() || description.lease.is_some();
        match &description.object {
            Some(Object::Epoll(_) | Object::Deleted(_) | Object::Shared(_) | Object::Terminal(_)) => {}
            Some(Object::Endpoint(endpoint)) if endpoint.backlog.is_some() => {}
            _ if !needs_a_process => continue,
            _ => {}
        }
        return Err(seen.refuse("it is open nowhere else, and cannot be saved on its way"));
    }
    Ok(())
}

/// Locks that processes have themselves, each through one of its descriptors; fdinfo shows each its own.
fn own_locks(
    processes: &[Member],
    tables: &mut [Vec<Descriptor>],
    ends: &[(OwnedFd, Seen)],
    descriptions: &[Description],
) -> Result<(), Refusal> {
    // By whom a description was found is what it was looked at for, too; the others have still to be asked.
    let is_known = |process: &Member, seen: &Seen| seen.carried.is_none() && seen.pid == process.thread;
    let unknown = processes.iter().zip(&*tables).map(|(process, table)| {
        table.iter().filter(|d| !is_known(process, &ends[d.description as usize].1)).count()
    });
    let all =
        if unknown.sum::<usize>() > ASKED_ONE_BY_ONE { fs::read_to_string(ALL_LOCKS).ok() } else { None };
    for (process, table) in processes.iter().zip(tables) {
        let id = process.pid.to_string();
        let is_his =
            |line: &str| line.contains("POSIX") && line.split_ascii_whitespace().any(|word| word == id);
        if all.as_ref().is_some_and(|all| !all.lines().any(is_his)) {
            continue;
        }
        let mut done = HashSet::new();
        for descriptor in table.iter_mut().filter(|d| done.insert(d.description)) {
            let index = descriptor.description as usize;
            let seen = &ends[index].1;
            descriptor.locks = if is_known(process, seen) {
                lock::parse(&seen.info, lock::Owner::Process)
            } else {
                let info = ProcDir::process(process.thread).text(&format!("fdinfo/{}", descriptor.number));
                lock::parse(&info.reading(process.pid, "fdinfo")?, lock::Owner::Process)
            };
            if descriptor.standard.is_some() && !descriptor.locks.is_empty() {
                return Err(seen.refuse(LOCKED_STREAM));
            }
            if descriptions[index].stage() == Stage::Last && !descriptor.locks.is_empty() {
                return Err(seen.refuse(MARKED));
            }
        }
    }
    Ok(())
}

/// Who has any locks at all. Reading it stops all locking on the machine and takes a grace period of RCU, 5 to 20 ms
/// (fs/locks.c, `locks_start`): as long as it takes to ask for so many descriptors.
const ALL_LOCKS: &str = "/proc/locks";
const ASKED_ONE_BY_ONE: usize = 1000;

const LOCKED_STREAM: &str = "locks on a standard stream of whoever started the program cannot be saved";
const MARKED: &str = "locks on it, and signals of it (F_SETOWN, F_SETSIG), cannot be saved";

/// What an object is looked at beside.
struct Program<'a> {
    all: &'a [(OwnedFd, Seen)],
    processes: &'a [Pid],
    /// The processes, and those that have ended and were not waited for.
    members: &'a [Pid],
    connections: &'a Connections,
}

/// The kernel has said which descriptors share a description: each of these is looked at once.
fn by_rows(processes: &[(Pid, &Vec<FileRow>)]) -> Result<Tables, Refusal> {
    let (mut tables, mut found) = (Vec::new(), Vec::new());
    let mut by_file: HashMap<u64, usize> = HashMap::new();
    for &(pid, rows) in processes {
        let mut table = Vec::with_capacity(rows.len());
        for row in rows {
            let index = match by_file.entry(row.file) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let eventfd = (row.eventfd & TOLD != 0).then_some(row.eventfd & !TOLD);
                    found.push(Seen { eventfd, ..Seen::look(pid, row.fd as i32)?.0 });
                    *new.insert(found.len() - 1)
                }
            };
            table.push(descriptor(row.fd, index, row.close_on_exec != 0));
        }
        tables.push(table);
    }
    Ok((tables, found))
}

/// Every descriptor is looked at; those that look alike are compared by kcmp(2).
fn by_looking(processes: &[Member]) -> Result<Tables, Refusal> {
    let mut tables = Vec::new();
    let mut found: Vec<Seen> = Vec::new();
    let mut groups: HashMap<(PathBuf, u64, u32), Vec<usize>> = HashMap::new();
    for &Member { thread: pid, .. } in processes {
        let mut table = Vec::new();
        for number in ProcDir::process(pid).numbers("fd").reading(pid, "fd")? {
            let (seen, close_on_exec) = Seen::look(pid, number)?;
            let group = groups.entry((seen.target.clone(), seen.position, seen.flags)).or_default();
            let mut known = None;
            for &index in &*group {
                let other: &Seen = &found[index];
                let order = pidfd::compare(pid, other.pid, pidfd::Kind::File, number, other.number)
                    .reading(pid, "kcmp")?;
                if order == Ordering::Equal {
                    known = Some(index);
                    break;
                }
            }
            let index = known.unwrap_or_else(|| {
                found.push(seen);
                group.push(found.len() - 1);
                found.len() - 1
            });
            table.push(descriptor(number as u32, index, close_on_exec));
        }
        tables.push(table);
    }
    Ok((tables, found))
}

fn descriptor(number: u32, index: usize, close_on_exec: bool) -> Descriptor {
    Descriptor { number, description: index as u32, close_on_exec, standard: None, locks: Vec::new() }
}

fn describe(
    fd: &OwnedFd,
    seen: &Seen,
    program: &Program<'_>,
    waiting: Option<Result<Vec<Message>, String>>,
    standard: Option<u32>,
    objects: &mut Objects,
) -> Result<Description, Refusal> {
    let outside = || Object::Outside(Outside { name: seen.target.display().to_string() });
    let object = match object(fd, seen, program, waiting, standard.is_some(), objects)? {
        // Nothing of a file without a name is needed where the restarter's own takes its place.
        Ok(
            Object::Deleted(_)
            | Object::Socket(_)
            | Object::Endpoint(_)
            | Object::Connection(_)
            | Object::Pid(_)
            | Object::Proc(_),
        ) if standard.is_some() => outside(),
        Ok(object) => object,
        // Whatever it is, the restarter's own takes its place.
        Err(_) if standard.is_some() => outside(),
        Err(reason) => return Err(seen.refuse(&reason)),
    };
    let locks = lock::parse(&seen.info, lock::Owner::Description);
    if standard.is_some() && !locks.is_empty() {
        return Err(seen.refuse(LOCKED_STREAM));
    }
    let signalled =
        if seen.is_path_only() { Ok(None) } else { owner::capture(fd, seen.flags, program.processes) };
    let signalled = signalled.map_err(|reason| seen.refuse(&reason))?;
    if standard.is_some() && signalled.is_some() {
        return Err(seen
            .refuse("who is signalled by a standard stream (F_SETOWN, F_SETSIG, O_ASYNC) cannot be saved"));
    }
    let (flags, position) = (seen.flags, seen.position);
    let lease = lock::lease(&seen.info).map_err(|reason| seen.refuse(&reason))?;
    if lease.is_some() && standard.is_some() {
        return Err(seen.refuse(LOCKED_STREAM));
    }
    let found = Description { flags, position, standard, locks, signalled, lease, object: Some(object) };
    // The process has something else in its place until after that.
    let is_marked = !found.locks.is_empty() || found.signalled.is_some();
    if (found.stage() == Stage::Last && is_marked) || (found.stage() == Stage::Ids && !found.locks.is_empty())
    {
        return Err(seen.refuse(MARKED));
    }
    Ok(found)
}

/// The object, or the reason why it cannot be saved.
fn object(
    fd: &OwnedFd,
    seen: &Seen,
    &Program { all, members, connections, .. }: &Program<'_>,
    waiting: Option<Result<Vec<Message>, String>>,
    is_standard: bool,
    objects: &mut Objects,
) -> Result<Result<Object, String>, Refusal> {
    let metadata = File::from(fd.try_clone().reading(seen.pid, "fd")?).metadata().reading(seen.pid, "fd")?;
    let kind = metadata.file_type();
    // A standard stream is the restarter's own, whatever it is.
    if !is_standard && let Some(shared) = memfd::capture(seen, &metadata, objects) {
        return shared.map(Ok);
    }
    Ok(if proc_file::is_one(seen, fd) {
        proc_file::capture(seen, &metadata, members)
    } else if seen.is_path_only() && seen.target.is_absolute() {
        file::capture_path(seen, &metadata)
    } else if (kind.is_file() || kind.is_dir()) && seen.target.is_absolute() {
        file::capture(seen, &metadata)
    } else if kind.is_char_device() {
        let device = file::capture_device(seen, &metadata).or_else(|| terminal::capture(seen, &metadata));
        device.ok_or_else(|| "this device cannot be saved".to_owned())
    } else if kind.is_fifo() && !is_standard {
        pipe::capture(seen, fd, &metadata, all)
    } else if kind.is_socket() && !is_standard {
        socket::capture(seen, fd, &metadata, all, waiting, connections, members)
    } else {
        match seen.target.to_str() {
            Some("anon_inode:[eventfd]") => eventfd::capture(&seen.info, seen.eventfd),
            Some("anon_inode:[eventpoll]") => epoll::capture(seen, all),
            Some("anon_inode:inotify") => inotify::capture(seen, fd),
            Some("anon_inode:[pidfd]") => process_fd::capture(seen, members),
            Some("anon_inode:[signalfd]") => signalfd::capture(seen),
            Some("anon_inode:[timerfd]") => timerfd::capture(seen, fd),
            _ => Err(seen.unknown()),
        }
    })
}

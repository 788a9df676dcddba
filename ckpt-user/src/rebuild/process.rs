//! One process: its skeleton becomes the recorded one, step by step, up to the point of running.

use super::fill::Watch;
use super::nursery::Nursery;
use super::objects::Objects;
use super::skeleton::{Skeleton, first_stop, syscall_instruction, unless_taken};
use super::{RebuildError, Rebuilding, fill, mappings};
use crate::image::Chain;
use crate::memory::{layout, protection_keys};
use crate::object::epoll::{self, Entry, Target};
use crate::object::table::Descriptor;
use crate::object::{Object, lock, owner};
use crate::record::{Image, Process, Thread};
use crate::sys::clone::CloneArgs;
use crate::sys::ids::FsIds;
use crate::sys::inject::Call;
use crate::sys::pidfd;
use crate::sys::remote::Remote;
use crate::task::filters::{Filter, Step};
use crate::task::keyring::Joined;
use crate::task::proc::ProcDir;
use crate::task::{
    barriers, control, credentials, denials, filters, limits, policy, scheduling, settings, signals,
    surroundings, tiles,
};
use nix::unistd::Pid;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A process with its address space, without its pages.
pub struct Mapped {
    pub record: Process,
    pub remote: Remote,
    /// Where this kernel's lies.
    pub vdso: Range<u64>,
    pub watch: Watch,
    pub pidfd: OwnedFd,
}

/// A process that is complete but for running.
pub struct RebuiltProcess {
    pub record: Process,
    /// The leader first.
    pub threads: Vec<Remote>,
    /// A `syscall` instruction that stays mapped.
    pub gadget: u64,
    pub watch: Watch,
    pub pidfd: OwnedFd,
}

impl RebuiltProcess {
    pub fn pid(&self) -> Pid {
        self.threads.first().map_or(Pid::from_raw(0), Remote::pid)
    }
}

/// Makes the address space: mappings, layout, userfaultfd, changed pages of file mappings.
pub fn map(
    record: &Process,
    mut skeleton: Skeleton,
    objects: &Objects,
    image: &Image,
    chain: &Chain,
    nursery: &Nursery,
    lazy: bool,
) -> Result<Mapped, RebuildError> {
    let pid = record.pid;
    let pidfd = pidfd::open(skeleton.remote.pid()).rebuilding(pid, "its pidfd")?;
    let vdso = mappings::rebuild(record, &mut skeleton, objects, image).rebuilding(pid, "the mappings")?;
    let layout = record.layout.as_ref().ok_or_else(|| incomplete(pid))?;
    let executable =
        layout.executable.as_ref().and_then(|e| objects.files.get(e)).ok_or_else(|| incomplete(pid))?;
    let executable = (!nursery.has_to_execute()).then(|| executable.as_raw_fd());
    layout::rebuild(layout, &mut skeleton.remote, executable).rebuilding(pid, "the memory layout")?;
    let watch =
        fill::prepare(record, &mut skeleton.remote, pidfd.as_fd(), chain, (lazy, objects.loan.as_ref()))?;
    Ok(Mapped { record: record.clone(), remote: skeleton.remote, vdso, watch, pidfd })
}

/// Makes everything else but its running. Its pages are there, or a pager serves them: from here on the kernel
/// touches its memory.
pub fn complete(
    mapped: Mapped,
    image: &Image,
    objects: &Objects,
    owner: &FsIds,
    nursery: &Nursery,
    joined: &mut Joined,
) -> Result<RebuiltProcess, RebuildError> {
    let Mapped { record, mut remote, vdso, watch, pidfd } = mapped;
    let pid = record.pid;
    let remote_pid = remote.pid();
    mappings::guard(&record, &mut remote).rebuilding(pid, "guard pages")?;
    mappings::lock(&record, &mut remote).rebuilding(pid, "locked memory")?;
    descriptors(&record, image, objects, &mut remote).rebuilding(pid, "the descriptors")?;
    lock::rebuild_own(&record.descriptors, &mut remote).rebuilding(pid, "its file locks")?;
    owners(&record, image, owner.uid == 0, &mut remote).rebuilding(pid, "who is signalled")?;
    if let Some(around) = &record.surroundings {
        surroundings::rebuild(around, owner, &mut remote).rebuilding(pid, "the working directory")?;
    }
    if let Some(wanted) = &record.settings {
        settings::rebuild(wanted, remote_pid, record.session != 0, &mut remote)
            .rebuilding(pid, "its settings")?;
    }
    if record.tiles {
        tiles::rebuild(&mut remote).rebuilding(pid, "its tile registers")?;
    }
    barriers::rebuild(record.barriers, &mut remote).rebuilding(pid, "its memory barriers")?;
    let current = ProcDir::process(remote_pid).text("limits").and_then(|t| limits::parse(&t));
    limits::rebuild(&record.limits, &current.rebuilding(pid, "limits")?, &mut remote)
        .rebuilding(pid, "limits")?;
    let gadget = syscall_instruction(remote_pid, &vdso).rebuilding(pid, "the vdso")?;
    signals::rebuild_actions(&record.actions, &mut remote).rebuilding(pid, "signal actions")?;
    if record.threads.iter().any(|t| t.seccomp.is_some()) {
        filters::suspend(&remote).rebuilding(pid, "its seccomp filters")?;
    }
    let mut threads = threads(&record, &image.filters, nursery, remote)?;
    // Before personality(2) may have what is readable executed too, and strict mode leaves no other call.
    protection_keys::protect(&record, &mut threads[0]).rebuilding(pid, "its protection keys")?;
    for (thread, remote) in record.threads.iter().zip(&mut threads) {
        own_state(&record, thread, (joined, &image.first_cpus), remote).rebuilding(pid, "a thread")?;
    }
    mappings::seal(&record, &mut threads[0]).rebuilding(pid, "sealed memory")?;
    if let Some(denied) = &record.denied {
        denials::rebuild_process(denied, &mut threads[0]).rebuilding(pid, "what is denied to it")?;
    }
    if let Some(slots) = record.futex_slots {
        control::rebuild_futexes(slots, &mut threads[0]).rebuilding(pid, "its futexes")?;
    }
    if let Some(wanted) = &record.settings {
        settings::rebuild_dumpable(wanted, &mut threads[0]).rebuilding(pid, "its settings")?;
    }
    signals::rebuild_shared(&record.pending, &mut threads[0], pid as u64)
        .rebuilding(pid, "the pending signals")?;
    Ok(RebuiltProcess { record, threads, gadget, watch, pidfd })
}

fn incomplete(pid: i32) -> RebuildError {
    RebuildError::Refused(format!("its record of process {pid} is incomplete"))
}

/// Moves the inherited descriptors to their numbers and closes everything else.
fn descriptors(record: &Process, image: &Image, objects: &Objects, remote: &mut Remote) -> io::Result<()> {
    watch(record, image, objects, remote)?;
    let mut table: Vec<_> = record.descriptors.iter().collect();
    table.sort_by_key(|d| d.number);
    let mut calls = Vec::with_capacity(table.len() * 2 + 1);
    let mut next = 0u64;
    for descriptor in &table {
        let source = match descriptor.standard {
            Some(stream) => objects.streams.get(stream as usize).and_then(Option::as_ref),
            None => objects.descriptions.get(descriptor.description as usize),
        };
        let source = source.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a descriptor refers to nothing in the image")
        })?;
        let number = u64::from(descriptor.number);
        let flags = if descriptor.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
        calls.push(Call::new(libc::SYS_dup3, &[source.as_raw_fd() as u64, number, flags]));
        if number > next {
            calls.push(Call::new(libc::SYS_close_range, &[next, number - 1, 0]));
        }
        next = number + 1;
    }
    // Everything that was inherited for the restart lies above.
    calls.push(Call::new(libc::SYS_close_range, &[next, u64::from(u32::MAX), 0]));
    remote.run_all(&calls)
}

/// Who is signalled is said by the first process that has the descriptor.
fn owners(record: &Process, image: &Image, is_roots: bool, remote: &mut Remote) -> io::Result<()> {
    for (index, description) in image.descriptions.iter().enumerate() {
        let of = |p: &Process| p.descriptors.iter().find(|d| d.description as usize == index).cloned();
        let first = image.processes.iter().find_map(|p| Some((p.pid, of(p)?)));
        if let Some((_, descriptor)) = first.filter(|(pid, _)| *pid == record.pid) {
            owner::rebuild(&descriptor, description, is_roots, remote)?;
        }
    }
    Ok(())
}

/// Each epoll is filled by the first process that has it.
fn watch(record: &Process, image: &Image, objects: &Objects, remote: &mut Remote) -> io::Result<()> {
    for (index, (description, fd)) in image.descriptions.iter().zip(&objects.descriptions).enumerate() {
        let Some(Object::Epoll(epoll)) = &description.object else { continue };
        let has = |p: &&Process| p.descriptors.iter().any(|d| d.description as usize == index);
        if image.processes.iter().find(has).is_some_and(|first| first.pid == record.pid) {
            epoll::watch(epoll, fd, |entry| target(entry, record, image, objects), remote)?;
        }
    }
    Ok(())
}

/// What an entry of an epoll of the process watches.
fn target<'a>(entry: &Entry, record: &Process, image: &'a Image, objects: &'a Objects) -> Option<Target<'a>> {
    let description = image.descriptions.get(entry.description as usize)?;
    let stream = description.standard.map(|lowest| {
        // What were several streams in one, each goes to its own.
        let is_it = |d: &&Descriptor| d.number == entry.number && d.description == entry.description;
        record.descriptors.iter().find(is_it).and_then(|d| d.standard).unwrap_or(lowest)
    });
    let fd = match stream.and_then(|stream| objects.streams.get(stream as usize)?.as_ref()) {
        Some(own) => own,
        None => objects.descriptions.get(entry.description as usize)?,
    };
    Some(Target { fd, description, stream })
}

/// Creates the other threads with their ids, and gives each its seccomp filters.
fn threads(
    record: &Process,
    filters: &[Filter],
    nursery: &Nursery,
    leader: Remote,
) -> Result<Vec<Remote>, RebuildError> {
    let chains: Vec<&[u32]> =
        record.threads.iter().map(|t| t.seccomp.as_ref().map_or(&[][..], |s| &s.filters)).collect();
    let mut all: Vec<Option<Remote>> = chains.iter().map(|_| None).collect();
    *all.first_mut().ok_or_else(|| incomplete(record.pid))? = Some(leader);
    for step in filters::plan(&chains) {
        match step {
            Step::Make { thread, by } => {
                let maker = all[by].as_mut().ok_or_else(|| incomplete(record.pid))?;
                all[thread] = Some(thread_of(maker, record.threads[thread].tid, nursery)?);
            }
            Step::Install { thread, filter } => {
                let remote = all[thread].as_mut().ok_or_else(|| incomplete(record.pid))?;
                let filter = filters.get(filter as usize).ok_or_else(|| incomplete(record.pid))?;
                filters::install(filter, remote).rebuilding(record.pid, "its seccomp filters")?;
            }
        }
    }
    all.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| incomplete(record.pid))
}

/// A thread with id `tid`, made by another one of its process.
fn thread_of(maker: &mut Remote, tid: i32, nursery: &Nursery) -> Result<Remote, RebuildError> {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    unless_taken(nursery, tid, || {
        let new = nursery.with_id(tid, |id| {
            let mut args = CloneArgs { flags: FLAGS as u64, ..CloneArgs::default() };
            if let Some(id) = id {
                (args.set_tid, args.set_tid_size) = (maker.data(&id.to_le_bytes())?, 1);
            }
            let new = maker.clone_call(&args.to_bytes())?;
            maker.sibling(first_stop(new)?)
        })?;
        if new.pid().as_raw() == tid {
            return Ok(new);
        }
        let gadget = new.gadget();
        new.end_thread(gadget, 0, false)?;
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    })
}

fn own_state(
    record: &Process,
    thread: &Thread,
    (joined, first_cpus): (&mut Joined, &[u8]),
    remote: &mut Remote,
) -> io::Result<()> {
    let name = remote.string(&thread.name)?;
    remote.call(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name, 0, 0, 0])?;
    remote.call(libc::SYS_set_tid_address, &[thread.clear_child_tid])?;
    if thread.robust_list != 0 {
        const HEAD_LEN: u64 = 24;
        remote.call(libc::SYS_set_robust_list, &[thread.robust_list, HEAD_LEN])?;
    }
    if let Some(own) = &thread.signals {
        signals::rebuild_thread(own, remote, record.pid as u64, thread.tid as u64)?;
    }
    if let Some(wanted) = &thread.scheduling {
        scheduling::rebuild(wanted, first_cpus, remote)?;
    }
    remote.call(libc::SYS_personality, &[u64::from(thread.personality)])?;
    let own = thread.control.clone().unwrap_or_default();
    control::rebuild(&own, remote)?;
    policy::rebuild(thread.policy.as_ref(), remote)?;
    if let Some(wanted) = &thread.credentials {
        let current = ProcDir::process(remote.pid()).status()?;
        credentials::rebuild(wanted, remote, &current)?;
    }
    if let Some(wanted) = &thread.keyring {
        joined.join(wanted, remote)?;
    }
    control::rebuild_last(&own, remote)?;
    if let Some(denied) = &thread.denied {
        denials::rebuild_thread(denied, remote)?;
    }
    if let Some(rseq) = thread.registers.as_ref().and_then(|r| r.rseq.as_ref()) {
        let (size, signature) = (u64::from(rseq.size), u64::from(rseq.signature));
        remote.call(libc::SYS_rseq, &[rseq.pointer, size, 0, signature])?;
    }
    filters::rebuild_strict(thread.seccomp.as_ref(), remote)
}

//! The skeleton tree: processes of ours with the right ids, empty but for a scratch mapping and the vdso.

use super::execute;
use super::nursery::Nursery;
use super::objects::Objects;
use super::plan::{self, Maker, Step};
use super::{RebuildError, Rebuilding, clocks, taken};
use crate::freeze::tree;
use crate::memory::vdso;
use crate::memory::vma::{self, MappedFile, Raw};
use crate::record::Image;
use crate::sys::clone::CloneArgs;
use crate::sys::inject::Call;
use crate::sys::ptrace::{self, Stopped};
use crate::sys::remote::{Remote, SCRATCH_LEN};
use crate::task::proc::ProcDir;
use crate::task::zombie::{self, Zombie};
use nix::unistd::{Pid, geteuid};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// One skeleton, stopped, its address space cleared.
pub struct Skeleton {
    pub remote: Remote,
    /// The kernel-made mappings it still has.
    pub special: Vec<Raw>,
    /// A free range as large as the scratch, for moving things by way of it.
    pub spare: u64,
}

pub const OPTIONS: i32 =
    ptrace::O_TRACESYSGOOD | ptrace::O_TRACEFORK | ptrace::O_TRACECLONE | ptrace::O_EXITKILL;

/// Makes the whole tree with its sessions, groups and ended children. `original_time` is gone back to.
pub fn plant(
    image: &Image,
    original_time: Option<File>,
    nursery: &Nursery,
    objects: &Objects,
) -> Result<Vec<Skeleton>, RebuildError> {
    let scratch = free_ranges(image)?;
    let nodes = image.nodes();
    let steps = plan::plan(&nodes).map_err(|e| RebuildError::Refused(e.to_string()))?;
    let mut grown: Vec<Option<Skeleton>> = nodes.iter().map(|_| None).collect();
    // What each has executed, or whoever has forked it.
    let mut executed: Vec<Option<&MappedFile>> = vec![None; nodes.len()];
    for step in steps {
        match step {
            Step::Make(i, maker) => {
                let pid = nodes[i].pid;
                let mut new = match maker {
                    Maker::Ourselves => {
                        let process = unless_taken(nursery, pid, || nursery.fork_waiting(pid, objects))?;
                        let mut new = take_over(process, scratch).rebuilding(pid, "the process")?;
                        nursery.equip(&mut new.remote, objects)?;
                        new
                    }
                    Maker::Parent(by) => child(made(&mut grown, by)?, pid, nodes[i].exit_signal, nursery)?,
                    Maker::Within(by) => orphan(made(&mut grown, by)?, pid, nursery)?,
                };
                if let Maker::Parent(by) | Maker::Within(by) = maker {
                    executed[i] = executed[by];
                }
                // Processes come first among the nodes.
                let layout = image.processes.get(i).and_then(|process| process.layout.as_ref());
                let wanted = layout.and_then(|layout| layout.executable.as_ref());
                if let Some(file) = wanted.filter(|_| nursery.has_to_execute() && wanted != executed[i]) {
                    new = execute::execute(new, objects, file).rebuilding(pid, "its executable")?;
                    executed[i] = wanted;
                }
                grown[i] = Some(new);
            }
            Step::Session(i) => {
                let leader = &mut made(&mut grown, i)?.remote;
                leader.call(libc::SYS_setsid, &[]).rebuilding(nodes[i].pid, "its session")?;
            }
            Step::Group(i) => {
                let member = &mut made(&mut grown, i)?.remote;
                let group = nodes[i].group as u64;
                member.call(libc::SYS_setpgid, &[0, group]).rebuilding(nodes[i].pid, "its process group")?;
            }
        }
    }
    clocks::leave(original_time).rebuilding(0, "the clocks")?;
    let living = image.processes.len();
    let leaders = living + image.zombies.len();
    for (i, node) in nodes.iter().enumerate().skip(leaders) {
        let gone = grown[i].take().map(|s| s.remote.end(0));
        gone.unwrap_or(Ok(())).rebuilding(node.pid, "a group without its leader")?;
    }
    for (record, i) in image.zombies.iter().zip(living..) {
        let Some(skeleton) = grown[i].take() else { continue };
        let parent = nodes.iter().position(|n| n.pid == record.parent);
        let parent = parent.and_then(|p| grown[p].as_mut()).map(|s| &mut s.remote);
        zombie::rebuild(record, skeleton.remote, parent).rebuilding(record.pid, "an ended process")?;
    }
    grown.truncate(living);
    grown.into_iter().map(|one| one.ok_or_else(lost)).collect()
}

fn lost() -> RebuildError {
    RebuildError::Refused("a process was lost while it was made".to_owned())
}

fn made(grown: &mut [Option<Skeleton>], index: usize) -> Result<&mut Skeleton, RebuildError> {
    grown.get_mut(index).and_then(Option::as_mut).ok_or_else(lost)
}

/// Makes a process or thread with id `pid`, waiting for a holder of the id that is on its way out: the kernel frees the
/// id of a thread only after the process may have been waited for. Ids that are in use were looked for before: who has
/// one now came since, and where one has to be quick may be gone soon.
pub(super) fn unless_taken<T>(
    nursery: &Nursery,
    pid: i32,
    mut make: impl FnMut() -> io::Result<T>,
) -> Result<T, RebuildError> {
    let until = Instant::now() + taken::WAIT;
    loop {
        match make() {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let holder = taken::holder(pid);
                let is_kept = holder.as_ref().is_some_and(|h| !h.dying) && !nursery.has_to_be_quick();
                if is_kept || Instant::now() > until {
                    return Err(RebuildError::Refused(format!(
                        "process id {pid}, which the program has, has just been taken by another process ({}); restart \
                         it once more",
                        holder.map_or_else(|| "?".to_owned(), |h| h.by)
                    )));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other.rebuilding(pid, "the process or thread"),
        }
    }
}

/// A child of the skeleton.
fn child(
    parent: &mut Skeleton,
    pid: i32,
    exit_signal: i32,
    nursery: &Nursery,
) -> Result<Skeleton, RebuildError> {
    unless_taken(nursery, pid, || {
        let born = nursery.with_id(pid, |id| fork_child(parent, id, exit_signal))?;
        if born.remote.pid().as_raw() == pid {
            return Ok(born);
        }
        end_child(born.remote, &mut parent.remote, exit_signal)?;
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    })
}

/// Ends a child of the skeleton, which hears nothing of it.
fn end_child(child: Remote, parent: &mut Remote, exit_signal: i32) -> io::Result<()> {
    let (pid, uid) = (child.pid().as_raw(), geteuid().as_raw());
    let ended = Zombie { pid, uid, exit_signal: Some(exit_signal), ..Zombie::default() };
    zombie::rebuild(&ended, child, Some(&mut *parent))?;
    parent.call(libc::SYS_wait4, &[pid as u64, 0, libc::__WALL as u64, 0]).map(drop)
}

/// A child of ours in the session of `leader`: born of a helper that ends, and adopted by us, the subreaper.
fn orphan(leader: &mut Skeleton, pid: i32, nursery: &Nursery) -> Result<Skeleton, RebuildError> {
    let mut helper = helper_within(leader, pid).rebuilding(pid, "a helper")?;
    let made = child(&mut helper, pid, libc::SIGCHLD, nursery)?;
    end_child(helper.remote, &mut leader.remote, libc::SIGCHLD).rebuilding(pid, "a helper")?;
    Ok(made)
}

/// A child of the leader with any id but `pid`, which may be the very one that the kernel gives next.
fn helper_within(leader: &mut Skeleton, pid: i32) -> io::Result<Skeleton> {
    let first = fork_child(leader, None, libc::SIGCHLD)?;
    if first.remote.pid().as_raw() != pid {
        return Ok(first);
    }
    // While the first has it, another one gets another.
    let other = fork_child(leader, None, libc::SIGCHLD)?;
    end_child(first.remote, &mut leader.remote, libc::SIGCHLD)?;
    Ok(other)
}

/// Two ranges of scratch size that neither the image's mappings touch nor those of whom skeletons are copies.
fn free_ranges(image: &Image) -> Result<(u64, u64), RebuildError> {
    let own = ProcDir::process(tree::keeper()).text("maps").and_then(|t| vma::parse(&t));
    let own = own.rebuilding(0, "maps")?;
    let mut taken: Vec<(u64, u64)> = own.iter().map(|r| (r.start, r.end)).collect();
    taken.extend(image.processes.iter().flat_map(|p| &p.mappings).map(|v| (v.start, v.end)));
    taken.sort_unstable();
    // Below every usual mapping, above mmap_min_addr; growth of stacks and heaps goes elsewhere.
    let mut found = Vec::new();
    let mut at = 0x1000_0000u64;
    for (start, end) in taken.into_iter().chain([(0x7fff_0000_0000, u64::MAX)]) {
        while found.len() < 2 && at + 3 * SCRATCH_LEN <= start {
            found.push(at + SCRATCH_LEN);
            at += 3 * SCRATCH_LEN;
        }
        at = at.max(end);
    }
    match found[..] {
        [scratch, spare, ..] => Ok((scratch, spare)),
        _ => Err(RebuildError::Refused("its address spaces leave no room to rebuild them".to_owned())),
    }
}

/// Seizes a waiting child, and makes a skeleton of it.
fn take_over(pid: Pid, ranges: (u64, u64)) -> io::Result<Skeleton> {
    let running = ptrace::seize(pid, OPTIONS)?;
    running.interrupt()?;
    occupy(running.wait_stopped()?, ranges)
}

/// Makes it do nothing on signals, and clears its address space.
pub(super) fn occupy(stopped: Stopped, (scratch, spare): (u64, u64)) -> io::Result<Skeleton> {
    let pid = stopped.tid();
    let maps = vma::parse(&ProcDir::process(pid).text("maps")?)?;
    let vdso = vdso::find(&maps).ok_or_else(|| io::Error::other("this kernel gives processes no vdso"))?;
    let gadget = syscall_instruction(pid, &vdso)?;
    let area = stopped.rseq()?;
    let mut remote = Remote::new(stopped, gadget, scratch)?;
    if area.pointer != 0 {
        const UNREGISTER: u64 = 1;
        let (size, signature) = (u64::from(area.size), u64::from(area.signature));
        remote.call(libc::SYS_rseq, &[area.pointer, size, UNREGISTER, signature])?;
    }
    let special: Vec<Raw> = maps.into_iter().filter(|m| vdso::kind(&m.name).is_some()).collect();
    clear(&mut remote, &special)?;
    Ok(Skeleton { remote, special, spare })
}

/// Unmaps everything but the scratch and the kernel-made mappings.
fn clear(remote: &mut Remote, special: &[Raw]) -> io::Result<()> {
    const TASK_SIZE: u64 = 0x7fff_ffff_f000;
    let mut kept: Vec<(u64, u64)> = special.iter().map(|m| (m.start, m.end)).collect();
    let scratch = remote.scratch();
    kept.push((scratch.start, scratch.end));
    kept.sort_unstable();
    let mut calls = Vec::new();
    let mut at = 0;
    for (start, end) in kept.into_iter().chain([(TASK_SIZE, TASK_SIZE)]) {
        if start > at {
            calls.push(Call::new(libc::SYS_munmap, &[at, start - at]));
        }
        at = end;
    }
    match remote.run(&calls)?.into_iter().find(|&r| r < 0) {
        Some(error) => Err(io::Error::from_raw_os_error(-error as i32)),
        None => Ok(()),
    }
}

/// The address of a `syscall` instruction in the vdso.
pub fn syscall_instruction(pid: Pid, vdso: &std::ops::Range<u64>) -> io::Result<u64> {
    let mut bytes = vec![0; (vdso.end - vdso.start) as usize];
    crate::sys::mem::read(pid, vdso.start, &mut bytes)?;
    let at = bytes.windows(2).position(|w| w == [0x0f, 0x05]);
    at.map(|i| vdso.start + i as u64).ok_or_else(|| io::Error::other("the vdso makes no system calls"))
}

/// Has the parent's skeleton fork a child, with id `pid` if one is wanted.
fn fork_child(parent: &mut Skeleton, pid: Option<i32>, exit_signal: i32) -> io::Result<Skeleton> {
    let mut args = CloneArgs { exit_signal: u64::from(exit_signal.unsigned_abs()), ..CloneArgs::default() };
    if let Some(pid) = pid {
        args.set_tid = parent.remote.data(&pid.to_le_bytes())?;
        args.set_tid_size = 1;
    }
    let child = parent.remote.clone_call(&args.to_bytes())?;
    let stopped = first_stop(child)?;
    let remote = parent.remote.sibling(stopped)?;
    Ok(Skeleton { remote, special: parent.special.clone(), spare: parent.spare })
}

/// Waits for the first stop of a task that was born traced.
pub fn first_stop(task: Pid) -> io::Result<Stopped> {
    ptrace::adopt(task).wait_stopped()
}

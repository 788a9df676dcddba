//! A pid namespace of the program's own, for a restart whose process ids are in use.
//!
//! ```text
//!  outside                    │ inside
//!  ckptbpf restart: stand-in ─┼─▶ init (pid 1, private /proc) ──▶ ckptbpf: supervisor ──▶ program
//!      signals ───────────────┼──────────────────────────────────▶
//!      ◀──────── how the supervisor stops and ends ────┘
//!  ckptbpf attach: stand-in ──┼─▶ go-between ──────────────────▶ ckptbpf: supervisor, of a program that is there
//! ```
//! The supervisor sees the ids that the program sees, so nothing is translated but what others read ([`outside`]). init
//! keeps the namespace until its last process is gone; it does nothing but reap and pass on how the supervisor fares.
//! Its death ends them all, by the kernel, which kills in the order of ids: the guardian of a lazy restart has the
//! highest, so that every task of the program has its SIGKILL before a userfaultfd can be closed.

use super::ended::Ended;
use super::process;
use super::stand_in::{News, StandIn};
use crate::rebuild::taken::{self, Taken};
use crate::record::Image;
use crate::sys::{clone, pidfd, spawn, wait};
use crate::task::outside;
use crate::task::proc::{ProcDir, reached_by};
use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::unistd::{Pid, pipe2};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// The name of our init, by which `attach` knows a namespace of ours.
const INIT: &str = "ckptbpf-init";

/// Where the kernel goes on when it has been through all ids (`RESERVED_PIDS`).
const RESERVED: i32 = 300;

/// Between two looks for processes that came in from outside.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Which of the two this process is after the fork.
pub enum Side {
    /// In the namespace: it does the work.
    Inside,
    /// Outside: it waits, and has what there is to tell at the end.
    Outside(StandIn),
}

/// Goes on in a new pid and mount namespace, where the ids of `image` are free. Only while this process has one thread.
///
/// # Errors
/// Names who has the id, and what the kernel refused: without CAP_SYS_ADMIN there are no namespaces.
pub fn make(image: &Image, taken: &Taken) -> anyhow::Result<Side> {
    let (ids, new) = (taken::ids(image), CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS);
    if ids.contains(&1) {
        bail!(
            "the program has process id 1, which is init's in every pid namespace: it cannot be restarted beside one"
        );
    }
    split(new.bits() as u64, || prepare(&ids)).with_context(|| {
        let Taken { id, by, .. } = taken;
        format!(
            "process id {id}, which the program has, is in use by another process ({by}), and a pid namespace of its own \
             cannot be had here: end that process, or restart as root"
        )
    })
}

/// Process ids in a new namespace that are not the program's.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    guardian: Pid,
    witness: Pid,
    supervisor: Pid,
    /// What is started without a wish gets the ids after this one: the widest range that the image leaves.
    last: i32,
}

impl Share {
    /// Beside `ids`, all below `end`; none when there is no room.
    fn beside(ids: &BTreeSet<i32>, end: i32) -> Option<Self> {
        let mut free = (RESERVED..end).rev().filter(|id| !ids.contains(id));
        let [guardian, witness, supervisor] = [free.next()?, free.next()?, free.next()?];
        let bounds = [RESERVED, supervisor].into_iter().chain(ids.range(RESERVED..supervisor).copied());
        let bounds: Vec<i32> = BTreeSet::from_iter(bounds).into_iter().collect();
        let last = bounds.windows(2).max_by_key(|pair| pair[1] - pair[0])?[0];
        let [guardian, witness, supervisor] = [guardian, witness, supervisor].map(Pid::from_raw);
        Some(Self { guardian, witness, supervisor, last })
    }

    fn here(ids: &BTreeSet<i32>) -> io::Result<Self> {
        let end = fs::read_to_string("/proc/sys/kernel/pid_max")?;
        let end = end.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Self::beside(ids, end).ok_or_else(|| io::Error::other("its process ids leave none for ckptbpf"))
    }
}

/// The id of a lazy restart's guardian; any, outside of namespaces of ours.
pub fn guardian_id(image: &Image) -> io::Result<Option<Pid>> {
    Ok(own_share(image)?.map(|share| share.guardian))
}

/// The same, of the witness.
pub fn witness_id(image: &Image) -> io::Result<Option<Pid>> {
    Ok(own_share(image)?.map(|share| share.witness))
}

fn own_share(image: &Image) -> io::Result<Option<Share>> {
    outside::is_noted().then(|| Share::here(&taken::ids(image))).transpose()
}

/// As pid 1 of the new namespace: its /proc, and the supervisor.
fn prepare(ids: &BTreeSet<i32>) -> io::Result<Option<Pid>> {
    prctl::set_name(c"ckptbpf-init")?;
    let none = None::<&str>;
    // What is mounted outside later is seen inside, and nothing the other way round.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)?;
    let share = Share::here(ids)?;
    fs::write("/proc/sys/kernel/ns_last_pid", share.last.to_string())?;
    let supervisor = clone::fork(0, Some(share.supervisor))?;
    if supervisor.is_none() {
        prctl::set_name(c"ckptbpf")?;
    }
    Ok(supervisor)
}

/// Where a process is supervised from.
pub enum Beside {
    /// From here: its id as this process sees it.
    As(i32),
    /// It was in a namespace of ours, and a child went there; this is how that ended.
    Ended(Ended),
}

/// Goes to where `pid` lives, if that is a pid namespace that a restart made. Only while this process has one thread.
///
/// # Errors
/// The namespace cannot be entered.
pub fn beside(pid: i32) -> anyhow::Result<Beside> {
    let Some(inside) = is_in_one_of_ours(pid) else { return Ok(Beside::As(pid)) };
    let enter = || -> io::Result<Option<Pid>> {
        let here = std::env::current_dir()?;
        setns(
            pidfd::of_thread(reached_by(Pid::from_raw(pid)))?,
            CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS,
        )?;
        std::env::set_current_dir(here)?;
        clone::fork(0, None)
    };
    let side = split(0, enter).with_context(|| {
        format!("process {pid} is in a pid namespace of its own, which cannot be entered")
    })?;
    match side {
        Side::Inside => Ok(Beside::As(inside)),
        Side::Outside(stand_in) => Ok(Beside::Ended(stand_in.serve()?)),
    }
}

/// The id that the process has in its pid namespace, if a restart of ours made that: then the mounts there are those
/// of here.
fn is_in_one_of_ours(pid: i32) -> Option<i32> {
    let shown = |pid: i32| ProcDir::process(reached_by(Pid::from_raw(pid)));
    let namespace = |pid: i32, kind| shown(pid).link(&format!("ns/{kind}")).ok();
    let own = std::process::id() as i32;
    let theirs = namespace(pid, "pid")?;
    if Some(&theirs) == namespace(own, "pid").as_ref() || namespace(pid, "user") != namespace(own, "user") {
        return None;
    }
    let root = |pid: i32| fs::metadata(shown(pid).path("root/")).map(|m| (m.dev(), m.ino())).ok();
    if root(pid)? != root(own)? {
        return None;
    }
    let mut init = pid;
    while id_inside(init)? != 1 {
        init = process::parent(init).filter(|&parent| namespace(parent, "pid").as_ref() == Some(&theirs))?;
    }
    let name = ProcDir::process(Pid::from_raw(init)).text("comm").ok()?;
    (name.trim() == INIT).then(|| id_inside(pid)).flatten()
}

fn id_inside(pid: i32) -> Option<i32> {
    let ids = ProcDir::process(Pid::from_raw(pid)).status().ok()?.numbers("NSpid").ok()?;
    ids.last().and_then(|&id| i32::try_from(id).ok())
}

/// Forks the process that stands between outside and inside, into the new namespaces of `flags`. It runs `start`, which
/// forks the supervisor and returns its id, or in the supervisor none.
fn split(flags: u64, start: impl FnOnce() -> io::Result<Option<Pid>>) -> anyhow::Result<Side> {
    let stand_in = StandIn::prepare()?;
    let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(between) = clone::fork(flags, None)? {
        drop(to);
        return Ok(Side::Outside(stand_in.begin(between, from)?));
    }
    drop(from);
    let started = outside::note_proc().and_then(|()| start());
    let known = match started {
        Ok(None) => return Ok(Side::Inside),
        Ok(Some(supervisor)) => outside::known_as(supervisor.as_raw())
            .map(|known| (supervisor, known))
            // Not without somebody who knows how to reach it.
            .inspect_err(|_| wait::send(supervisor, libc::SIGKILL)),
        Err(error) => Err(error),
    };
    match known {
        Ok((supervisor, known)) => {
            News::Started(known).tell(to.as_fd());
            pass_on(supervisor, &to)
        }
        Err(error) => {
            News::Failed(error.raw_os_error().unwrap_or(libc::EIO)).tell(to.as_fd());
            std::process::exit(1)
        }
    }
}

/// The life of who stands between: reaps, tells what becomes of the supervisor, and ends when nobody is left. Whoever
/// came in from outside (`attach`) is nobody's child here, and yet ends with pid 1.
fn pass_on(supervisor: Pid, to: &OwnedFd) -> ! {
    // Failing to, it would only keep files and mounts busy.
    let _ = std::env::set_current_dir("/");
    let _ = spawn::close_all_but(to.as_fd());
    loop {
        match wait::any_child() {
            Ok((pid, status)) if pid == supervisor => News::Status(status).tell(to.as_fd()),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                if std::process::id() != 1 || is_alone() {
                    std::process::exit(0);
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            Ok(_) | Err(_) => {}
        }
    }
}

fn is_alone() -> bool {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    !ids.any(|id| id != 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ckptbpf_has_the_highest_ids_and_others_begin_where_there_is_room() {
        let share = |ids: &[i32], end| Share::beside(&BTreeSet::from_iter(ids.iter().copied()), end);
        let expect = |ids: [i32; 3], last| {
            let [guardian, witness, supervisor] = ids.map(Pid::from_raw);
            Some(Share { guardian, witness, supervisor, last })
        };
        assert_eq!(share(&[2, 3, 5], 32768), expect([32767, 32766, 32765], RESERVED));
        assert_eq!(share(&[400, 30000], 32768), expect([32767, 32766, 32765], 400));
        assert_eq!(share(&[900, 32766, 32767], 32768), expect([32765, 32764, 32763], 900));
        assert_eq!(share(&[], 302), None);
    }
}

//! From root to the job's user, for good: the first thing that a worker does.
//!
//! Its ids are the peer's, all of them, its capabilities none, and nothing that it executes can change that. It sees the
//! mounts and the network that its peer sees, so a path means there what it means here. It stays where its core has it in the
//! control groups: out of the job's, in its user's ([`super::subgroups`]) or in the core's. That is why nobody may trace it, its
//! own user neither: a program put into it would escape the job's limits.

use super::bounds;
use super::peer::{Who, held_back};
use super::proc_fd::ProcFd;
use super::wire::Refusal;
use crate::job::terminal;
use crate::sys::{caps, keyring, own};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::unistd::{Gid, Pid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid, setsid};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

/// Where it is 1, whoever becomes another user is open to that for a moment.
const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";

/// Becomes a process of `who`'s, in the namespaces of `process`, which is who's.
///
/// # Errors
/// What the peer is refused for, or [`Refusal::Failed`], of which the log has the reason. The caller ends then: half of it may
/// be done.
pub fn become_worker(who: &Who, process: BorrowedFd<'_>) -> Result<(), Refusal> {
    let failed = |what: &str, error: io::Error| {
        terminal::say(&format!("a worker for uid {}: cannot {what}: {error}", who.uid));
        Refusal::Failed
    };
    // Not reached by a signal to the core's session.
    setsid().map_err(|errno| failed("leave the session", errno.into()))?;
    // What is of this machine's /proc is opened here: no path is walked with root's rights where the peer has its mounts.
    own::note().map_err(|error| failed("look at its own memory", error))?;
    let (theirs, ours) = (ProcFd::of(who.pid), ProcFd::of(Pid::this()));
    let (theirs, ours) = (theirs.map_err(|_| Refusal::Process)?, ours.map_err(|_| Refusal::Process)?);
    let suid_dumpable =
        File::open(SUID_DUMPABLE).map_err(|error| failed("look at fs.suid_dumpable", error))?;
    // Rather than anybody else it is a worker that goes where memory is short.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    let shared = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(process, shared).map_err(|errno| failed("enter its namespaces", errno.into()))?;
    // setns(2) has put us into the root directory of the mounts. The peer may have executed something since it was judged.
    let here = std::fs::metadata("/").map(|found| (found.dev(), found.ino())).map_err(|_| Refusal::Root)?;
    if theirs.root().map_err(|_| Refusal::Process)? != here {
        return Err(Refusal::Root);
    }
    held_back(who, &theirs, &ours)?;
    for namespace in ["ns/mnt", "ns/ipc", "ns/net", "ns/uts"] {
        if !theirs.link(namespace).is_ok_and(|link| ours.link(namespace).is_ok_and(|own| own == link)) {
            return Err(Refusal::Namespace);
        }
    }
    bounds::take_over(who.pid, &theirs, &ours).map_err(|error| failed("take over its limits", error))?;
    // Then what was taken over was this process's.
    theirs.text("stat").map_err(|_| Refusal::Process)?;
    if io::read_to_string(suid_dumpable).is_ok_and(|mode| mode.trim() == "1") {
        return Err(failed("be closed to its user", io::Error::other("fs.suid_dumpable is 1: set it to 0")));
    }
    take_ids(who).map_err(|error| failed("take its ids", error))?;
    // The core's may hold keys of root's (keyrings(7)).
    match keyring::join_new_session() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        joined => joined.map_err(|error| failed("leave the session keyring", error))?,
    }
    prctl::set_no_new_privs().map_err(|errno| failed("give up new rights", errno.into()))?;
    prctl::set_dumpable(false).map_err(|errno| failed("close itself to others", errno.into()))
}

fn take_ids(who: &Who) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    caps::drop_all()?;
    let (uids, gids) = (getresuid()?, getresgid()?);
    let is_it = [uids.real, uids.effective, uids.saved].iter().all(|one| *one == uid)
        && [gids.real, gids.effective, gids.saved].iter().all(|one| *one == gid);
    if is_it && !caps::has_any() { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

//! `attach` and `checkpoint PID` go to where the process lives: into a pid namespace that a restart made ([`super::namespace`]).
//!
//! Its namespaces are opened once, and what is judged is entered. Who has made a user namespace may have made anything in it, a
//! world of files too: it is entered by that user alone, who has all of it anyway. Nor does anybody go to mounts, or process ids,
//! that belong to another user namespace than the one judged.

use super::ended::Ended;
use super::namespace::{self, INIT, Side, Worker, split};
use super::process;
use super::way::Way;
use crate::freeze::tree;
use crate::front;
use crate::sys::clone;
use crate::sys::ids::{self, FsIds};
use crate::sys::pidfd;
use crate::task::proc::{ProcDir, reached_by};
use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

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
/// The namespace is not to be entered, or cannot be.
pub fn beside(pid: i32) -> anyhow::Result<Beside> {
    // One that is gone is told of by whoever looks at it next.
    let (Ok(theirs), Ok(ours)) = (Namespaces::of(pid), Namespaces::of(std::process::id() as i32)) else {
        return Ok(Beside::As(pid));
    };
    let Some(inside) = is_in_one_of_ours(pid, &theirs, &ours) else { return Ok(Beside::As(pid)) };
    let is_known = theirs.user.is(&ours.user);
    if !is_known {
        check_user(pid, &theirs)?;
    }
    if !theirs.belong_together() {
        bail!("process {pid} is in namespaces of somebody else's, which are not entered");
    }
    if !is_known {
        ids::note_groups();
    }
    let enter = || -> io::Result<Option<Pid>> {
        let here = std::env::current_dir()?;
        if !is_known {
            setns(theirs.user.file.as_fd(), CloneFlags::CLONE_NEWUSER)?;
        }
        setns(theirs.pid.file.as_fd(), CloneFlags::CLONE_NEWPID)?;
        setns(theirs.mounts.file.as_fd(), CloneFlags::CLONE_NEWNS)?;
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

/// The same, by whom it is done: a worker has its front show that it may.
///
/// # Errors
/// As [`beside`]; the process is none that the front may trace.
pub fn place(pid: i32, way: &Way) -> anyhow::Result<Beside> {
    let Way::Worker(link) = way else { return beside(pid) };
    front::beside::is_shown(pid, link)?;
    if tree::is_above(Pid::from_raw(pid), tree::front()) {
        bail!(
            "process {pid} has started this ckptbpf, which would have to stop itself: start it from elsewhere"
        );
    }
    let process = pidfd::open(Pid::from_raw(pid)).context("the program is gone")?;
    let namespaces = |of: i32| {
        Namespaces::of(of).with_context(|| format!("cannot look at the namespaces of process {of}"))
    };
    let (theirs, ours) = (namespaces(pid)?, namespaces(std::process::id() as i32)?);
    if is_in_one_of_ours(pid, &theirs, &ours).is_none() {
        return Ok(Beside::As(pid));
    }
    check_user(pid, &theirs)?;
    if !theirs.belong_together() {
        bail!("process {pid} is in namespaces of somebody else's, which are not entered");
    }
    // From here on it may go elsewhere: a worker is worth no more than its user, whose namespaces these are.
    let known = process.try_clone()?;
    match namespace::enter_by(process, None, None)? {
        Worker::Outside(Ended::Signaled(_)) => front::lost(),
        Worker::Outside(ended) => Ok(Beside::Ended(ended)),
        Worker::Inside(_) => {
            let inside = pidfd::names(known.as_fd())?.context("the program is gone")?;
            Ok(Beside::As(inside.as_raw()))
        }
    }
}

/// A namespace that is held, whatever becomes of the process.
struct Namespace {
    file: File,
    identity: (u64, u64),
}

impl Namespace {
    fn held(file: File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { file, identity: (found.dev(), found.ino()) })
    }

    fn is(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

struct Namespaces {
    user: Namespace,
    pid: Namespace,
    mounts: Namespace,
}

impl Namespaces {
    fn of(pid: i32) -> io::Result<Self> {
        let dir = ProcDir::process(reached_by(Pid::from_raw(pid)));
        let open = |kind: &str| Namespace::held(File::open(dir.path(format!("ns/{kind}")))?);
        Ok(Self { user: open("user")?, pid: open("pid")?, mounts: open("mnt")? })
    }

    /// Whether the process ids and the mounts are those of its user namespace.
    fn belong_together(&self) -> bool {
        let owner = |of: &Namespace| clone::user_namespace_of(of.file.as_fd()).and_then(Namespace::held);
        [&self.pid, &self.mounts].into_iter().all(|of| owner(of).is_ok_and(|owner| owner.is(&self.user)))
    }
}

/// It is our own user's, who has the groups that the program has: they cannot be told in there.
fn check_user(pid: i32, theirs: &Namespaces) -> anyhow::Result<()> {
    let owner = clone::owner_of(theirs.user.file.as_fd())?;
    let own = FsIds::current();
    if owner != own.uid || own.uid == 0 {
        bail!(
            "process {pid} is in a user namespace of uid {owner}: do this as that user, or ask its ckptbpf by its directory"
        );
    }
    let dir = ProcDir::process(reached_by(Pid::from_raw(pid)));
    let groups: Vec<u32> = dir.status()?.numbers("Groups")?;
    if groups != own.groups {
        bail!(
            "process {pid} is in the groups {groups:?}, and this is in {:?}: log in with those",
            own.groups
        );
    }
    Ok(())
}

/// The id that the process has in its pid namespace, if a restart of ours made that: then the mounts there are those
/// of here.
fn is_in_one_of_ours(pid: i32, theirs: &Namespaces, ours: &Namespaces) -> Option<i32> {
    if theirs.pid.is(&ours.pid) {
        return None;
    }
    let shown = |pid: i32| ProcDir::process(reached_by(Pid::from_raw(pid)));
    let namespace = |pid: i32| shown(pid).link("ns/pid").ok();
    let root = |pid: i32| fs::metadata(shown(pid).path("root/")).map(|m| (m.dev(), m.ino())).ok();
    if root(pid)? != root(std::process::id() as i32)? {
        return None;
    }
    let (mut init, own) = (pid, namespace(pid)?);
    while id_inside(init)? != 1 {
        init = process::parent(init).filter(|&parent| namespace(parent).as_ref() == Some(&own))?;
    }
    let name = ProcDir::process(Pid::from_raw(init)).text("comm").ok()?;
    (name.trim() == INIT).then(|| id_inside(pid)).flatten()
}

fn id_inside(pid: i32) -> Option<i32> {
    let ids = ProcDir::process(Pid::from_raw(pid)).status().ok()?.numbers("NSpid").ok()?;
    ids.last().and_then(|&id| i32::try_from(id).ok())
}

//! A pid namespace of the program's own, for a restart whose process ids are in use, or by a user who may choose none elsewhere.
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
//!
//! Who is not root gets a user namespace around it (user_namespaces(7)), which knows this user and one group. In there ckptbpf has
//! all capabilities over what it makes, and none over anything else; the program has none, as before.

use super::ended::Ended;
use super::stand_in::{News, StandIn};
use crate::daemon::link::{self, Link, Word};
use crate::object::Object;
use crate::rebuild::taken::{self, Taken};
use crate::record::Image;
use crate::sys::ids::{self, FsIds};
use crate::sys::{caps, clone, pidfd, probe, spawn, wait};
use crate::task::outside;
use crate::track::backend;
use anyhow::{Context, anyhow, bail};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::unistd::{Pid, geteuid, pipe2};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The name of our init, by which `attach` ([`super::beside`]) knows a namespace of ours.
pub(super) const INIT: &str = "ckptbpf-init";

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

/// Why a program gets one.
#[derive(Debug, Clone)]
pub enum Why {
    /// It has an id that is in use.
    Taken(Taken),
    /// Elsewhere its ids cannot be chosen.
    Alone,
}

impl Why {
    /// Whether the ids of `image` are to be had where we are.
    pub fn for_image(image: &Image) -> Option<Self> {
        let is_alone = || !geteuid().is_root() && !clone::may_choose_ids();
        taken::first(image).map(Self::Taken).or_else(|| is_alone().then_some(Self::Alone))
    }

    /// What there is to say once it runs, with its id inside and outside.
    pub fn told(&self, inside: i32, outside: &str) -> String {
        let where_it_runs = format!("as pid {inside} there (here: {outside})");
        let (kind, groups) = match ids::noted_groups() {
            None => ("pid", ""),
            Some(_) => ("user and pid", said_of_groups()),
        };
        format!(
            "{}: the program runs in a {kind} namespace of its own, {where_it_runs}{groups}",
            self.reason()
        )
    }

    pub(super) fn reason(&self) -> String {
        match self {
            Self::Taken(Taken { id, by, .. }) => format!("process id {id} is in use ({by})"),
            Self::Alone => "only root may choose process ids here".to_owned(),
        }
    }
}

/// What the program sees of its groups, but for its own: what they allow, they still allow.
fn said_of_groups() -> &'static str {
    let own = FsIds::current();
    if own.groups.iter().all(|group| *group == own.gid) {
        ""
    } else {
        ", and looks as if it were in group 65534 instead of its supplementary ones"
    }
}

/// Goes on in a new pid and mount namespace, where the ids of `image` are free. Only while this process has one thread.
///
/// # Errors
/// Why it is needed, and what the kernel refused.
pub fn make(image: &Image, why: &Why) -> anyhow::Result<Side> {
    let ids = taken::ids(image);
    refuse_init(&ids)?;
    let mut new = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    // Root without it may have other users' programs, which such a namespace does not know.
    let user = (!geteuid().is_root() && !caps::has(caps::SYS_ADMIN)).then(FsIds::current);
    if user.is_some() {
        new |= CloneFlags::CLONE_NEWUSER;
        ids::note_groups();
    }
    if let Some(user) = &user {
        permitted(image, user)?;
    }
    let start = || {
        if let Some(user) = &user {
            map_ids(user)?;
            own_clocks()?;
        }
        prepare(&ids)
    };
    split(new.bits() as u64, start).with_context(|| match &user {
        None => format!(
            "{}, and a pid namespace of its own cannot be had here: end that process, or restart as root",
            why.reason()
        ),
        Some(_) => no_user_namespace(why),
    })
}

/// What there is to say where a user can have none.
pub(super) fn no_user_namespace(why: &Why) -> String {
    format!(
        "{}, and a user namespace of its own, in which a user may choose, cannot be had: have the administrator allow them \
         (sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns, where there are such), or restart as root",
        why.reason()
    )
}

/// The two sides of [`enter_by`].
pub enum Worker {
    /// In the namespace, with a link to its init where that is the front's: it does the work.
    Inside(Option<Arc<Link>>),
    /// Outside: how the one inside has ended.
    Outside(Ended),
}

/// Held to the very end of the worker inside: init ends with it, and whoever is in the namespace with init.
static KEEPER: OnceLock<Option<Arc<Link>>> = OnceLock::new();

/// Whether this process is a worker in a program's namespace: with another one outside, which waits for it.
pub fn is_worker_inside() -> bool {
    KEEPER.get().is_some()
}

/// As a worker: has the front make the namespace, and goes on in it; or what the kernel says where there is none to be had, and nothing
/// has been done. Only while this process has one thread.
///
/// # Errors
/// The image is not to be restarted by this user, or the front is gone.
pub fn make_by(front: &Link, image: &Image) -> anyhow::Result<io::Result<Worker>> {
    let ids = taken::ids(image);
    refuse_init(&ids)?;
    permitted(image, &FsIds::current())?;
    let share = Share::here(&ids)?;
    let supervisor = share.supervisor;
    let asked = link::Share { supervisor: supervisor.as_raw(), last: share.last };
    front.say(&Word::Split(asked), &[]).context("the front is gone")?;
    let kept = front.hear().context("the front is gone")?.map(|heard| (heard.word, heard.descriptors));
    let (init, keeper) = match kept {
        Some((Word::Kept(_), descriptors)) => {
            let [init, keeper] = <[OwnedFd; 2]>::try_from(descriptors)
                .map_err(|_| anyhow!("the front has lost the namespace"))?;
            (init, Arc::new(Link::new(keeper)))
        }
        Some((Word::Made(number), _)) => {
            return Ok(Err(io::Error::from_raw_os_error(number.saturating_neg())));
        }
        _ => bail!("the front is gone"),
    };
    enter_by(init, Some(keeper), Some(supervisor)).map(Ok)
}

/// As a worker: goes on in the program's namespaces, which are those of a process; `keeper` is a link to init, `supervisor` the
/// process id to have in there. Only while this process has one thread.
///
/// # Errors
/// The kernel refuses it.
pub fn enter_by(
    process: OwnedFd,
    keeper: Option<Arc<Link>>,
    supervisor: Option<Pid>,
) -> anyhow::Result<Worker> {
    ids::note_groups();
    // What this process may not see of itself from in there.
    backend::note();
    outside::note_proc()?;
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let outer = pidfd::open(Pid::this())?;
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    setns(process, flags).context("the program's namespaces cannot be entered")?;
    // It may have been removed: what is asked for is found by descriptor then, or not at all.
    let _ = std::env::set_current_dir(here);
    match clone::fork(0, supervisor).context("the program's namespaces cannot be entered")? {
        None => {
            // Nobody would have its last word without the one outside.
            clone::end_with_outside(&outer)?;
            Ok(Worker::Inside(KEEPER.get_or_init(|| keeper).clone()))
        }
        Some(inside) => {
            drop(keeper);
            Ok(Worker::Outside(wait::for_end(inside)?))
        }
    }
}

/// As init of a new user namespace for `user`: its ids, its /proc, and where its process ids go on.
pub fn furnish(user: &FsIds, last: i32) -> io::Result<()> {
    map_ids(user)?;
    be_init()?;
    fs::write("/proc/sys/kernel/ns_last_pid", last.to_string())
}

fn refuse_init(ids: &BTreeSet<i32>) -> anyhow::Result<()> {
    if ids.contains(&1) {
        bail!(
            "the program has process id 1, which is init's in every pid namespace: it cannot be restarted beside one"
        );
    }
    Ok(())
}

/// Nobody changes ids in such a namespace: the program had those that its user has now.
fn permitted(image: &Image, user: &FsIds) -> anyhow::Result<()> {
    let sorted = |groups: &[u32]| BTreeSet::from_iter(groups.iter().copied());
    for had in image.processes.iter().flat_map(|p| &p.threads).filter_map(|t| t.credentials.as_ref()) {
        let is_it =
            had.uids.iter().all(|uid| *uid == user.uid) && had.gids.iter().all(|gid| *gid == user.gid);
        if !is_it || sorted(&had.groups) != sorted(&user.groups) {
            bail!(
                "the program was of users {:?} and groups {:?}, beside them {:?}, and this is user {} and group {}, beside that \
                 {:?}: only root can change that; log in with those groups (newgrp(1), sg(1)), or restart as root",
                had.uids,
                had.gids,
                had.groups,
                user.uid,
                user.gid,
                user.groups
            );
        }
    }
    if let Some(ended) = image.zombies.iter().find(|ended| ended.uid != user.uid) {
        bail!("process {} had ended as user {}: only root can restart that", ended.pid, ended.uid);
    }
    let has_file = |object: &Object| matches!(object, Object::Endpoint(endpoint) if endpoint.file.is_some());
    if image.descriptions.iter().filter_map(|one| one.object.as_ref()).any(has_file) {
        bail!("the program has a socket with a name in the file system, which only root can make again");
    }
    Ok(())
}

/// A time namespace that belongs to this user namespace, with the clocks as they are: whoever is born from now on may go back to
/// it. Kernels without such namespaces need none.
fn own_clocks() -> io::Result<()> {
    match clone::unshare_time() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done,
    }
}

/// Whether a user can do here what a restart by a user does ([`Why::Alone`]). Tried in children.
///
/// # Errors
/// What the kernel refuses.
pub fn try_alone() -> io::Result<()> {
    if geteuid().is_root() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let user = FsIds::current();
    probe::try_in_child(|| {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
        map_ids(&user)?;
        probe::try_in_child(|| {
            mount_proc()?;
            probe::child_with_id(Pid::from_raw(RESERVED))?;
            clone::unshare_time()
        })
    })
}

/// As the first process of a new user namespace: it knows `user`, and the one group that a user may map.
fn map_ids(user: &FsIds) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{0} {0} 1", user.uid))?;
    fs::write("/proc/self/gid_map", format!("{0} {0} 1", user.gid))
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
    be_init()?;
    let share = Share::here(ids)?;
    fs::write("/proc/sys/kernel/ns_last_pid", share.last.to_string())?;
    let supervisor = clone::fork(0, Some(share.supervisor))?;
    if supervisor.is_none() {
        prctl::set_name(c"ckptbpf")?;
    }
    Ok(supervisor)
}

/// As pid 1 of a new namespace: its name, by which it is known, and its /proc.
fn be_init() -> io::Result<()> {
    prctl::set_name(c"ckptbpf-init")?;
    mount_proc()
}

/// In a new pid and mount namespace: the /proc of it.
fn mount_proc() -> io::Result<()> {
    let none = None::<&str>;
    // What is mounted outside later is seen inside, and nothing the other way round.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, none)?)
}

/// Forks the process that stands between outside and inside, into the new namespaces of `flags`. It runs `start`, which
/// forks the supervisor and returns its id, or in the supervisor none.
pub(super) fn split(flags: u64, start: impl FnOnce() -> io::Result<Option<Pid>>) -> anyhow::Result<Side> {
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
    let _ = spawn::close_all_but(&[to.as_fd()]);
    loop {
        match wait::any_child() {
            Ok((pid, status)) if pid == supervisor => News::Status(status).tell(to.as_fd()),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                if std::process::id() == 1 {
                    wait_to_be_alone();
                }
                std::process::exit(0);
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// As pid 1: returns once nobody else is left, whoever's child.
pub fn wait_to_be_alone() {
    while !is_alone() {
        // Orphans of theirs are ours.
        while wait::next_change().is_ok_and(|change| change.is_some()) {}
        std::thread::sleep(LOOK_AGAIN);
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

//! The processes of a job: the root's descendants, and orphans that were handed to its keeper as subreaper.

use crate::task::proc::{ProcDir, Stat, is_gone, reached_by};
use nix::sys::prctl;
use nix::unistd::Pid;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

/// The program's parent, where that is not this process: a front, whose worker this is.
static KEEPER: OnceLock<Pid> = OnceLock::new();

/// The ckptbpf that a person has started, where that is not this process.
static FRONT: OnceLock<Pid> = OnceLock::new();

/// Notes the process that this one works for; the first call counts.
pub fn note_front(front: Pid) {
    FRONT.get_or_init(|| front);
}

/// The process that a person has started, where that is not this one; its id outside of namespaces of the program's own.
pub fn noted_front() -> Option<Pid> {
    FRONT.get().copied()
}

/// The process that a person has started.
pub fn front() -> Pid {
    noted_front().unwrap_or_else(Pid::this)
}

/// The process that started the program, and gets its orphans.
pub fn keeper() -> Pid {
    KEEPER.get().copied().unwrap_or_else(Pid::this)
}

/// Notes that the program is not this process's own; the first call counts. `strangers` are children that the keeper had before.
pub fn note_keeper(keeper: Pid, strangers: &[Pid]) {
    KEEPER.get_or_init(|| keeper);
    STRANGERS.get_or_init(|| strangers.iter().filter_map(|&pid| known(pid)).collect());
}

/// Children that the keeper had before it started a program, with their start times: a shell that ran
/// `exec > >(tee log)` and then `exec ckptbpf …` leaves one. They are no part of the job, and outlast it.
static STRANGERS: OnceLock<Vec<(Pid, u64)>> = OnceLock::new();

/// The program's first process, with its start time: once it is gone, its id may be a stranger's.
static ROOT: OnceLock<(Pid, u64)> = OnceLock::new();

/// Notes which process is the program's first, while it is there; the first call counts.
pub fn note_root(root: Pid) {
    if let Ok(stat) = ProcDir::process(root).stat() {
        ROOT.get_or_init(|| (root, stat.start_time()));
    }
}

fn is_another(root: Pid) -> bool {
    let known = ROOT.get().filter(|known| known.0 == root);
    known.is_some_and(|known| ProcDir::process(root).stat().is_ok_and(|s| s.start_time() != known.1))
}

/// Notes the children that are there before the job has any; the first call counts.
pub fn note_strangers() {
    STRANGERS
        .get_or_init(|| children_of(Pid::this()).unwrap_or_default().into_iter().filter_map(known).collect());
}

/// Those that were noted.
pub fn strangers() -> Vec<Pid> {
    STRANGERS.get().into_iter().flatten().map(|one| one.0).collect()
}

fn known(pid: Pid) -> Option<(Pid, u64)> {
    Some((pid, ProcDir::process(pid).stat().ok()?.start_time()))
}

/// Whether strangers, and nobody else, are left of the keeper's children.
pub fn only_strangers_left() -> bool {
    let any = STRANGERS.get().is_some_and(|strangers| !strangers.is_empty());
    any && children_of(keeper()).is_ok_and(|children| children.into_iter().all(is_stranger))
}

fn is_stranger(pid: Pid) -> bool {
    let mut strangers = STRANGERS.get().into_iter().flatten().filter(|one| one.0 == pid);
    strangers.any(|one| ProcDir::process(pid).stat().is_ok_and(|stat| stat.start_time() == one.1))
}

/// (process, parent) pairs, parents before children, ended processes (zombies) left out. Those whose first thread has ended while
/// others are left are among them, be it for good or on their way out.
///
/// When `root` itself has ended, what it left behind are children of its keeper.
///
/// Those that the kernel tells of: for whoever sends signals, or counts. See [`all_members`].
pub fn members(root: Pid) -> Vec<(Pid, Pid)> {
    let told = |pid: Pid| Ok(children_of(pid).unwrap_or_default());
    walk(root, told).unwrap_or_default()
}

/// The same, and nobody is missing.
///
/// # Errors
/// What the kernel says where it does not tell the children of one of them.
pub fn all_members(root: Pid) -> io::Result<Vec<(Pid, Pid)>> {
    walk(root, children_of)
}

fn walk(root: Pid, children: impl Fn(Pid) -> io::Result<Vec<Pid>>) -> io::Result<Vec<(Pid, Pid)>> {
    let mut found: Vec<(Pid, Pid)> = Vec::new();
    let own = keeper();
    let mut queue = Vec::new();
    if !is_another(root) {
        queue.push((root, parent_of(root).unwrap_or(own)));
    }
    queue.extend(
        children(own)?
            .into_iter()
            .filter(|&c| c != root && is_adopted(c) && !is_stranger(c))
            .map(|c| (c, own)),
    );
    let mut at = 0;
    while at < queue.len() {
        let (pid, parent) = queue[at];
        at += 1;
        if found.iter().any(|f| f.0 == pid) || !is_there(pid) {
            continue;
        }
        found.push((pid, parent));
        queue.extend(children(pid)?.into_iter().map(|child| (child, pid)));
    }
    Ok(found)
}

/// Whether a process that was listed has not ended. While another thread than its first one executes a program, its id leads
/// for a moment to the first one, which is just taken away, or to nobody.
fn is_there(pid: Pid) -> bool {
    const A_MOMENT: Duration = Duration::from_micros(200);
    let look = || ProcDir::process(pid).stat();
    let is_clear = |stat: &Stat| stat.state() != 'X';
    let stat = look().ok().filter(is_clear).or_else(|| {
        std::thread::sleep(A_MOMENT);
        look().ok()
    });
    stat.is_some_and(|stat| stat.is_there())
}

/// The children of all threads of a process; none of one that is gone.
///
/// # Errors
/// They are not to be had: too many open files, or a kernel without CONFIG_PROC_CHILDREN.
pub fn children_of(pid: Pid) -> io::Result<Vec<Pid>> {
    let tasks = match ProcDir::process(pid).numbers("task") {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut all = Vec::new();
    for tid in tasks.into_iter().map(Pid::from_raw) {
        let thread = ProcDir::thread(pid, tid);
        match thread.children() {
            Err(error) if is_gone(&error) && thread.stat().is_err() => {}
            told => all.extend(told?),
        }
    }
    Ok(all)
}

/// Whether it shows as ended, and others of its threads are left. Its parent is not told before they are gone.
pub fn has_lost_its_first_thread(pid: Pid) -> bool {
    ProcDir::process(pid).stat().is_ok_and(|stat| stat.has_lost_its_first_thread())
}

/// Whether `pid` is `other` or one of those that it comes from.
pub fn is_above(pid: Pid, other: Pid) -> bool {
    std::iter::successors(Some(other), |&pid| parent_of(pid)).any(|one| one == pid)
}

fn parent_of(pid: Pid) -> Option<Pid> {
    ProcDir::process(pid).stat().ok().map(|s| s.parent())
}

/// Whether a child of the keeper was not started by it as a helper: helpers run its own executable, and are as open as it is.
fn is_adopted(pid: Pid) -> bool {
    let is_open = || keeper() != Pid::this() || prctl::get_dumpable().unwrap_or(false);
    match (ProcDir::process(keeper()).link("exe"), ProcDir::process(reached_by(pid)).link("exe")) {
        (own, Ok(exe)) => own.ok() != Some(exe),
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::PermissionDenied && is_open() => true,
        // Helpers have one thread, and none is shown of a thread that is just ending.
        _ => has_lost_its_first_thread(pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_that_are_not_told_of_are_no_missing_ones() {
        let untold = |_| Err(io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(walk(Pid::this(), untold).unwrap_err().raw_os_error(), Some(libc::EMFILE));
        assert!(children_of(Pid::from_raw(i32::MAX)).unwrap().is_empty(), "a process that is gone has none");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let told = children_of(Pid::this()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(told.contains(&Pid::from_raw(child.id() as i32)), "{told:?}");
    }
}

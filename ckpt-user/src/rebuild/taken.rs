//! Process ids of an image that somebody has already.

use crate::record::Image;
use crate::task::proc::{ProcDir, is_dying_here};
use nix::unistd::{Pid, getpgid, getsid};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

/// How long the end of something dying is waited for.
pub const WAIT: Duration = Duration::from_secs(5);

/// An id that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub id: i32,
    /// Name of who has it: as its own, or as that of its process group or session.
    pub by: String,
    /// It has ended, or is about to.
    pub dying: bool,
}

/// Every id that a restart makes: processes, threads, ended children, and leaders that are gone.
pub fn ids(image: &Image) -> BTreeSet<i32> {
    let threads = image.processes.iter().flat_map(|p| p.threads.iter().map(|t| t.tid));
    image.nodes().iter().map(|n| n.pid).chain(threads).collect()
}

/// The first id of the image that somebody keeps. Waits for those that something ended or ending still holds, at most
/// [`WAIT`].
pub fn first(image: &Image) -> Option<Taken> {
    let ids = ids(image);
    let until = Instant::now() + WAIT;
    loop {
        let taken = look(&ids);
        if taken.is_empty() {
            return None;
        }
        if let Some(kept) = taken.values().find(|t| !t.dying || Instant::now() > until) {
            return Some(kept.clone());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// So many ids are to be free of the image's where ckptbpf's own processes and threads get theirs.
const ROOM: i32 = 1000;

/// Has the kernel give ids that the image does not use to whatever starts from now on: others, and what ckptbpf starts for itself,
/// its witness and guardian, and the threads that fill and page. After a reboot, ids near those of the program are just what
/// comes next.
pub fn stay_clear(image: &Image) {
    if let Ok(last) = last() {
        let clear = clear_of(last, &ids(image));
        // Where it may not be written to, an id that is taken for this is an error that says so.
        if clear != last
            && let Err(error) = go_on_after_surely(clear)
        {
            log::debug!("{LAST}: {error}");
        }
    }
}

/// Of this process's pid namespace (proc_sys_kernel(5)).
const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// The id that was given last, to whatever had no wish.
///
/// # Errors
/// This kernel does not tell (CONFIG_CHECKPOINT_RESTORE).
pub fn last() -> io::Result<i32> {
    let text = std::fs::read_to_string(LAST)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What has no wish gets ids after this one.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, EINVAL beyond kernel.pid_max.
pub fn go_on_after(id: i32) -> io::Result<()> {
    std::fs::write(LAST, id.to_string())
}

/// The same, surely: whoever forks at that very moment would have the kernel go on where that was (`alloc_pid` and
/// `pid_ns_ctl_handler` of kernel/pid*.c: only forks have the lock).
///
/// # Errors
/// As above; EBUSY where others are always quicker.
pub fn go_on_after_surely(id: i32) -> io::Result<()> {
    const TRIES: u32 = 20;
    // Longer than one that forks has the lock.
    const LOCKED: Duration = Duration::from_micros(50);
    for _ in 0..TRIES {
        go_on_after(id)?;
        std::thread::sleep(LOCKED);
        if (id..=id.saturating_add(ROOM)).contains(&last()?) {
            return Ok(());
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// The least id from `last` on with [`ROOM`] behind it.
fn clear_of(last: i32, ids: &BTreeSet<i32>) -> i32 {
    let beyond = ids.range(last.saturating_add(1)..);
    beyond.fold(last, |clear, &id| if id <= clear.saturating_add(ROOM) { id } else { clear })
}

/// Who has id `id`.
pub fn holder(id: i32) -> Option<Taken> {
    look(&BTreeSet::from([id])).remove(&id)
}

/// Those of `ids` that are in use. An id lives on as that of a group or session when its process is gone.
fn look(ids: &BTreeSet<i32>) -> BTreeMap<i32, Taken> {
    let mut found = BTreeMap::new();
    let mut note = |id: i32, pid: i32| {
        let holder = ProcDir::process(Pid::from_raw(pid));
        if let Ok(stat) = holder.stat() {
            let taken = Taken { id, by: stat.comm.clone(), dying: is_dying_here(Pid::from_raw(pid), &stat) };
            found.entry(id).and_modify(|old: &mut Taken| old.dying &= taken.dying).or_insert(taken);
        }
    };
    for &id in ids {
        note(id, id);
    }
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let of = Some(Pid::from_raw(pid));
        for id in [getpgid(of), getsid(of)].into_iter().flatten().map(Pid::as_raw) {
            if ids.contains(&id) && id != pid {
                note(id, pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Process, Thread};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    fn image(pid: i32, tid: i32) -> Image {
        let thread = |tid| Thread { tid, ..Thread::default() };
        let process = Process { pid, threads: vec![thread(pid), thread(tid)], ..Process::default() };
        Image { processes: vec![process], ..Image::default() }
    }

    #[test]
    fn ids_of_threads_and_of_leaders_that_are_gone_count() {
        let mut image = image(7, 9);
        image.processes[0].process_group = 5;
        image.processes[0].session = 4;
        assert_eq!(ids(&image), BTreeSet::from([4, 5, 7, 9]));
    }

    #[test]
    fn ids_of_our_own_come_where_the_image_has_none() {
        let ids = BTreeSet::from([5, 306, 307, 1200, 9000]);
        assert_eq!(clear_of(300, &ids), 1200);
        assert_eq!(clear_of(4, &ids), 1200);
        assert_eq!(clear_of(1200, &ids), 1200);
        assert_eq!(clear_of(7999, &ids), 7999);
        assert_eq!(clear_of(8000, &ids), 9000);
        assert_eq!(clear_of(i32::MAX, &ids), i32::MAX);
    }

    #[test]
    fn who_has_an_id_is_named_also_a_group_whose_leader_is_gone() {
        let own = std::process::id() as i32;
        let beyond = 1 << 30;
        assert_eq!(first(&image(beyond, beyond + 1)), None);
        assert_eq!(first(&image(beyond, own)).map(|t| (t.id, t.dying)), Some((own, false)));
        // The shell leads a group, starts one that stays in it, and ends.
        let shell =
            Command::new("sh").args(["-c", "sleep 60 >/dev/null 2>&1 & echo $!"]).process_group(0).output();
        let sleep: i32 = String::from_utf8(shell.unwrap().stdout).unwrap().trim().parse().unwrap();
        let group = getpgid(Some(Pid::from_raw(sleep))).unwrap().as_raw();
        let taken = first(&image(beyond, group)).unwrap();
        nix::sys::signal::kill(Pid::from_raw(sleep), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!((taken.id, taken.by.as_str()), (group, "sleep"));
    }
}

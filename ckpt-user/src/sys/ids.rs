//! File-system ids of one thread: files are opened as the user they belong to, never as root.
//!
//! Root-squashed NFS and Lustre refuse root what they allow the user, and a path that a user controls must not
//! be walked with root's rights. Linux keeps fsuid, fsgid and the supplementary groups per thread, and drops
//! CAP_DAC_OVERRIDE and its kin from the effective set while fsuid is not 0 (capabilities(7)); so assuming
//! another user's ids is a matter of this thread alone, and of the time that [`Assumed`] lives.

use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;

use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};

/// Whose rights decide at a file: user, group, supplementary groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsIds {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// Supplementary groups of this process and of all that it starts, where a user namespace shows others.
static GROUPS: OnceLock<Vec<u32>> = OnceLock::new();

/// Keeps in mind which supplementary groups this process has, before it goes into a user namespace that knows one group: nobody
/// changes them in there (`deny` in /proc/PID/setgroups), and everybody sees 65534 in their place. The first call counts.
pub fn note_groups() {
    GROUPS.get_or_init(|| FsIds::current().groups);
}

/// What [`note_groups`] has noted.
pub fn noted_groups() -> Option<&'static [u32]> {
    GROUPS.get().map(Vec::as_slice)
}

/// How a user namespace shows every id that it does not know (proc_sys_kernel(5), overflowuid).
const NOBODY: u32 = 65534;

/// An id that is not to be changed, as chown(2) has it.
pub const UNKNOWN: u32 = u32::MAX;

fn is_hidden(id: u32) -> bool {
    id == NOBODY && noted_groups().is_some()
}

/// Whether what this user id owns is root's. In a user namespace root looks like everybody else: to be asked only where no other
/// user could have come in between.
pub fn is_root(uid: u32) -> bool {
    uid == 0 || is_hidden(uid)
}

/// The user or group of a file, as it is recorded: [`UNKNOWN`] where a user namespace hides it.
pub fn recorded(id: u32) -> u32 {
    if is_hidden(id) { UNKNOWN } else { id }
}

/// What chown(2) has to be told for a file that belongs to `has`, user and group, to belong to `wanted`; none for nothing. What
/// a user namespace cannot tell or give stays as it was made: with the group of its maker, or of its directory.
pub fn owners_to_give(wanted: (u32, u32), has: (u32, u32)) -> Option<(Option<u32>, Option<u32>)> {
    let own = [geteuid().as_raw(), getegid().as_raw()];
    let is_known = |id: u32| noted_groups().is_none() || own.contains(&id);
    let one = |wanted: u32, has: u32| {
        (wanted != has && wanted != UNKNOWN && is_known(wanted) && is_known(has)).then_some(wanted)
    };
    let both = (one(wanted.0, has.0), one(wanted.1, has.1));
    (both != (None, None)).then_some(both)
}

/// `SECBIT_*` of this thread (capabilities(7)).
///
/// # Errors
/// The kernel has no such thing.
pub fn securebits() -> io::Result<u32> {
    // SAFETY: integers only; PR_GET_SECUREBITS gives its answer as the call's result.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    super::check(i64::from(bits)).map(|bits| bits as u32)
}

impl FsIds {
    /// The effective ids of this process.
    pub fn current() -> Self {
        let shown = || getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        let groups = noted_groups().map_or_else(shown, <[u32]>::to_vec);
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    /// The file-system ids of this thread, which a guard may have changed. Asking with -1, never valid, changes none.
    pub fn of_thread() -> Self {
        let uid = setfsuid(Uid::from_raw(u32::MAX)).as_raw();
        let gid = setfsgid(Gid::from_raw(u32::MAX)).as_raw();
        Self { uid, gid, ..Self::current() }
    }

    /// Opens and creates files with these ids, on this thread, until the guard is dropped.
    ///
    /// Costs nothing when they are the process's own. Fails with `EPERM` when the kernel does not allow them
    /// (no CAP_SETUID or CAP_SETGID); then nothing has changed.
    pub fn assume(&self) -> io::Result<Assumed> {
        let own = Self::of_thread();
        let mut back = Assumed { own: None, thread: PhantomData };
        if same(&own, self) {
            return Ok(back);
        }
        // From here on the guard undoes whatever has been changed, also when a step fails.
        back.own = Some(own);
        set_thread_groups(&self.groups)?;
        setfsgid(Gid::from_raw(self.gid));
        setfsuid(Uid::from_raw(self.uid));
        // Neither call reports failure.
        let now = Self::of_thread();
        if (now.uid, now.gid) == (self.uid, self.gid) {
            Ok(back)
        } else {
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
    }
}

fn same(a: &FsIds, b: &FsIds) -> bool {
    let sorted = |ids: &FsIds| {
        let mut groups = ids.groups.clone();
        groups.sort_unstable();
        groups.dedup();
        groups
    };
    a.uid == b.uid && a.gid == b.gid && sorted(a) == sorted(b)
}

/// Gives the thread its own ids back when dropped. Bound to its thread.
#[derive(Debug)]
pub struct Assumed {
    own: Option<FsIds>,
    thread: PhantomData<*const ()>,
}

impl Drop for Assumed {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            setfsuid(Uid::from_raw(own.uid));
            setfsgid(Gid::from_raw(own.gid));
            // It was allowed on the way in, by a capability that changing fsuid does not touch.
            let _ = set_thread_groups(&own.groups);
        }
    }
}

/// setgroups(2) for the calling thread only: the C library's wrapper changes every thread of the process.
fn set_thread_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `groups.len()` ids of 4 bytes (gid_t is u32 on every Linux target of ours, which
    // use the 32-bit-id call) from a slice that is alive and initialised for the whole call, and writes nothing
    // to this process's memory; no other thread's credentials are touched.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn own_ids_are_assumed_by_anyone() {
        let own = FsIds::current();
        drop(own.assume().unwrap());
        assert_eq!(FsIds::current(), own);
    }

    #[test]
    fn a_file_made_under_assumed_ids_is_theirs_and_rights_are_too() {
        if crate::skipped::without_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(1234), Some(1235)).unwrap();
        let other = FsIds { uid: 1234, gid: 1235, groups: vec![1236] };
        {
            let _as = other.assume().unwrap();
            std::fs::write(dir.path().join("a"), "x").unwrap();
            let root = std::fs::OpenOptions::new().write(true).open("/etc/shadow");
            assert_eq!(root.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            let elsewhere = std::thread::spawn(|| setfsuid(Uid::from_raw(u32::MAX)));
            // A thread started meanwhile inherits; that is why guards live shortly.
            assert_eq!(elsewhere.join().unwrap().as_raw(), 1234);
        }
        {
            let _as = other.assume().unwrap();
            drop(other.assume().unwrap());
            // A guard within another one gives back what it found, not root.
            assert_eq!(FsIds::of_thread(), FsIds { groups: vec![1236], ..other.clone() });
        }
        let made = std::fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 1235));
        assert_eq!(setfsuid(Uid::from_raw(u32::MAX)).as_raw(), 0);
    }
}

//! The runtime directory: where control sockets and the entries of live jobs are, on this machine only.
//!
//! `$XDG_RUNTIME_DIR/ckptbpf/` when that belongs to the user, else `/run/ckptbpf/<uid>/`, which root makes, else
//! `/tmp/ckptbpf-<uid>/`, for batch jobs of users; never the job's own directory, which may be on a network file system and too deep for a socket's address (108 bytes).
//! Mode 0700, owner verified, no symbolic link followed: a socket found in it is that user's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat};

use crate::sys::ids::{self, Assumed, FsIds};

/// Where root makes one for each user.
const SHARED: &str = "/run/ckptbpf";
/// Where users make their own who have neither session nor that; whatever TMPDIR is, as another shell would not find it.
const TEMPORARY: &str = "/tmp";
const PREFIX: &str = "ckptbpf-";

/// What it may be called there.
fn temporary_names(uid: u32) -> impl Iterator<Item = String> {
    let later = (1..10).map(move |number| format!("{PREFIX}{uid}.{number}"));
    std::iter::once(format!("{PREFIX}{uid}")).chain(later)
}

/// Entries are the user's alone. They have the sticky bit, which does nothing for files, but keeps them where directories are
/// cleaned of what is old (tmpfiles.d(5)): a job may run for long.
const ENTRY_MODE: u32 = 0o1600;

/// An entry larger than this is not one of ours.
const ENTRY_LIMIT: u64 = 64 << 10;

/// Why there is no runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// None of the places can be had.
    #[error(
        "no runtime directory: XDG_RUNTIME_DIR does not name one of uid {uid}'s, and {path} cannot be made; log \
         in with a session, or have root make one once: install -d -m 700 -o {uid} /run/ckptbpf/{uid}"
    )]
    None {
        /// The user.
        uid: u32,
        /// The place outside of a session.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is there, but not safe to use.
    #[error(
        "{path} is not uid {uid}'s alone (owner {owner}, mode {mode:03o}); remove it, and it is made again"
    )]
    Unsafe {
        /// The directory.
        path: String,
        /// Whose it should be.
        uid: u32,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// A file in it.
    #[error("{path}: cannot {what}")]
    Io {
        /// The file.
        path: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A verified runtime directory, held by descriptor.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    fd: OwnedFd,
    ids: FsIds,
}

impl RuntimeDir {
    /// The user's runtime directory; made where it is not there.
    pub fn for_user(ids: &FsIds) -> Result<Self, RuntimeDirError> {
        if let Some(session) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
            && let Some(found) = Self::in_session(&session, ids)?
        {
            return Ok(found);
        }
        match Self::in_shared(Path::new(SHARED), ids) {
            Err(_) if !geteuid().is_root() => Self::in_temporary(Path::new(TEMPORARY), ids),
            found => found,
        }
    }

    /// The first of `<temporary>/ckptbpf-<uid>`, `….1` and so on that is not somebody else's: others may make directories there,
    /// too.
    pub fn in_temporary(temporary: &Path, ids: &FsIds) -> Result<Self, RuntimeDirError> {
        let one = |name: String| {
            let path = temporary.join(&name);
            // The directory itself may be reached by a link of root's.
            let above = std::fs::canonicalize(temporary).and_then(|temporary| open_dir(&temporary));
            let made = above.and_then(|above| make(&above, &name));
            made.map_err(|source| none(ids, &path, source)).and_then(|fd| Self::verified(path, fd, ids))
        };
        let mut first = None;
        for name in temporary_names(ids.uid) {
            match one(name) {
                Ok(found) => return Ok(found),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| none(ids, temporary, io::ErrorKind::NotFound.into())))
    }

    /// `<session>/ckptbpf`, if the session directory is this user's.
    pub fn in_session(session: &Path, ids: &FsIds) -> Result<Option<Self>, RuntimeDirError> {
        let Ok(above) = open_dir(session) else { return Ok(None) };
        if !fstat(&above).is_ok_and(|stat| stat.st_uid == ids.uid) {
            return Ok(None);
        }
        let path = session.join("ckptbpf");
        let made = ids.assume().and_then(|_as| make(&above, "ckptbpf"));
        match made {
            Ok(fd) => Self::verified(path, fd, ids).map(Some),
            Err(source) => Err(none(ids, &path, source)),
        }
    }

    /// `<shared>/<uid>`: root makes it for anyone, a user only finds it.
    pub fn in_shared(shared: &Path, ids: &FsIds) -> Result<Self, RuntimeDirError> {
        let path = shared.join(ids.uid.to_string());
        let fail = |source: io::Error| none(ids, &path, source);
        if let Err(error) = std::fs::create_dir(shared)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(fail(error));
        }
        let above = open_dir(shared).map_err(fail)?;
        let stat = fstat(&above).map_err(|errno| fail(errno.into()))?;
        let own = geteuid().as_raw();
        if stat.st_uid == own && stat.st_mode & 0o7777 != 0o755 {
            // Made by us under some umask.
            fchmod(&above, Mode::from_bits_truncate(0o755)).map_err(|errno| fail(errno.into()))?;
        } else if (stat.st_uid != own && !ids::is_root(stat.st_uid)) || stat.st_mode & 0o022 != 0 {
            let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
            return Err(RuntimeDirError::Unsafe { path: shared.display().to_string(), uid: 0, owner, mode });
        }
        let fd = make(&above, &ids.uid.to_string()).map_err(fail)?;
        let fresh = fstat(&fd).is_ok_and(|stat| stat.st_uid == own && own != ids.uid);
        if fresh {
            let owner = (Some(Uid::from_raw(ids.uid)), Some(Gid::from_raw(ids.gid)));
            fchown(&fd, owner.0, owner.1).map_err(|errno| fail(errno.into()))?;
        }
        Self::verified(path, fd, ids)
    }

    /// All runtime directories that the caller may look into: the user's own, or for root everybody's.
    pub fn visible() -> Vec<Self> {
        let own = FsIds::current();
        let mut places = Vec::new();
        if let Some(session) = std::env::var_os("XDG_RUNTIME_DIR") {
            places.push(PathBuf::from(session).join("ckptbpf"));
        }
        let numbered = |base: &str| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        if own.uid == 0 {
            places.extend(numbered(SHARED));
            places.extend(numbered("/run/user").into_iter().map(|session| session.join("ckptbpf")));
            let is_ours = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let owner = std::fs::symlink_metadata(path).map(|found| found.uid());
                owner.is_ok_and(|owner| temporary_names(owner).any(|own| own == name))
            };
            places.extend(numbered(TEMPORARY).into_iter().filter(is_ours));
        } else {
            places.push(PathBuf::from(SHARED).join(own.uid.to_string()));
            places.push(PathBuf::from("/run/user").join(own.uid.to_string()).join("ckptbpf"));
            places.extend(temporary_names(own.uid).map(|name| PathBuf::from(TEMPORARY).join(name)));
        }
        places.sort();
        places.dedup();
        places.iter().filter_map(|path| Self::existing(path, &own)).collect()
    }

    /// An existing one, verified; root works in another's with that user's ids.
    pub fn existing(path: &Path, caller: &FsIds) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        let ids = if found.uid() == caller.uid {
            caller.clone()
        } else if caller.uid == 0 {
            let alone = FsIds { uid: found.uid(), gid: found.gid(), groups: vec![found.gid()] };
            super::identity::fs_ids_of(found.uid()).unwrap_or(alone)
        } else {
            return None;
        };
        // Root itself need not have the right to: the directory is closed to others.
        let fd = {
            let _as = ids.assume().ok()?;
            open_dir(path).ok()?
        };
        Self::verified(path.to_owned(), fd, &ids).ok()
    }

    fn verified(path: PathBuf, fd: OwnedFd, ids: &FsIds) -> Result<Self, RuntimeDirError> {
        let dir = Self { path, fd, ids: ids.clone() };
        let stat = fstat(&dir.fd).map_err(|errno| dir.io("", "look at it", errno))?;
        if stat.st_uid != ids.uid || stat.st_mode & 0o077 != 0 {
            let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
            return Err(RuntimeDirError::Unsafe {
                path: dir.path.display().to_string(),
                uid: ids.uid,
                owner,
                mode,
            });
        }
        Ok(dir)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of its owner.
    pub fn ids(&self) -> &FsIds {
        &self.ids
    }

    /// Takes the owner's ids on this thread until the guard is dropped.
    pub fn assume(&self) -> io::Result<Assumed> {
        self.ids.assume()
    }

    /// A path to a name in it that goes through the descriptor: short enough for a socket, and not redirected.
    pub fn reach(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// The names in it.
    pub fn names(&self) -> Vec<String> {
        let Ok(_as) = self.assume() else { return Vec::new() };
        let entries = std::fs::read_dir(self.reach("")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Reads a file of at most 64 KiB.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, RuntimeDirError> {
        let fail = |source: io::Error| self.io(name, "read it", source);
        let _as = self.assume().map_err(fail)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(|errno| fail(errno.into()))?;
        let mut text = Vec::new();
        File::from(fd).take(ENTRY_LIMIT).read_to_end(&mut text).map_err(fail)?;
        Ok(text)
    }

    /// Writes a file whole: under a temporary name, then renamed.
    pub fn write(&self, name: &str, text: &[u8]) -> Result<(), RuntimeDirError> {
        let write = || -> io::Result<()> {
            let _as = self.assume()?;
            let temporary = format!("{name}.tmp");
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(ENTRY_MODE).custom_flags(libc::O_NOFOLLOW);
            options.open(self.reach(&temporary))?.write_all(text)?;
            Ok(renameat(&self.fd, temporary.as_str(), &self.fd, name)?)
        };
        write().map_err(|source| self.io(name, "write it", source))
    }

    /// Removes a file; one that is gone is fine.
    pub fn remove(&self, name: &str) {
        if let Ok(_as) = self.assume() {
            let _ = unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir);
        }
    }

    pub(super) fn io(&self, name: &str, what: &'static str, source: impl Into<io::Error>) -> RuntimeDirError {
        RuntimeDirError::Io { path: self.path.join(name).display().to_string(), what, source: source.into() }
    }
}

fn none(ids: &FsIds, path: &Path, source: io::Error) -> RuntimeDirError {
    RuntimeDirError::None { uid: ids.uid, path: path.display().to_string(), source }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Makes (or finds) a directory in another and opens it.
fn make(above: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(above, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(above, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    #[test]
    fn a_session_directory_of_another_user_is_passed_over() {
        if crate::skipped::without_root() {
            return;
        }
        let session = tempfile::tempdir().unwrap();
        let other = FsIds { uid: 4321, gid: 4321, groups: vec![4321] };
        assert!(RuntimeDir::in_session(session.path(), &other).unwrap().is_none());
        chown(session.path(), Some(4321), None).unwrap();
        let dir = RuntimeDir::in_session(session.path(), &other).unwrap().unwrap();
        let made = std::fs::metadata(dir.path()).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o7777), (4321, 0o700));
    }

    #[test]
    fn root_makes_the_shared_one_for_a_user() {
        if crate::skipped::without_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let shared = base.path().join("run");
        let other = FsIds { uid: 4321, gid: 4322, groups: vec![4322] };
        let dir = RuntimeDir::in_shared(&shared, &other).unwrap();
        dir.write("a.json", b"{}").unwrap();
        let made = std::fs::metadata(shared.join("4321/a.json")).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (4321, 4322, ENTRY_MODE));
        assert_eq!(RuntimeDir::in_shared(&shared, &other).unwrap().read("a.json").unwrap(), b"{}");
        assert_eq!(RuntimeDir::existing(dir.path(), &FsIds::current()).unwrap().ids().uid, 4321);
    }

    #[test]
    fn where_others_may_make_directories_only_one_s_own_is_used() {
        let own = FsIds::current();
        let temporary = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let names: Vec<String> = temporary_names(own.uid).collect();
        symlink(elsewhere.path(), temporary.path().join(&names[0])).unwrap();
        std::fs::create_dir(temporary.path().join(&names[1])).unwrap();
        std::fs::set_permissions(temporary.path().join(&names[1]), PermissionsExt::from_mode(0o755)).unwrap();
        let made = RuntimeDir::in_temporary(temporary.path(), &own).unwrap();
        assert_eq!(made.path(), temporary.path().join(&names[2]));
        assert_eq!(std::fs::metadata(made.path()).unwrap().mode() & 0o7777, 0o700);
        for name in &names[2..] {
            let _ = std::fs::remove_dir(temporary.path().join(name));
            symlink(elsewhere.path(), temporary.path().join(name)).unwrap();
        }
        assert!(RuntimeDir::in_temporary(temporary.path(), &own).is_err());
        assert!(elsewhere.path().read_dir().unwrap().next().is_none());
    }

    #[test]
    fn links_and_open_modes_are_refused() {
        let own = FsIds::current();
        let session = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), session.path().join("ckptbpf")).unwrap();
        assert!(RuntimeDir::in_session(session.path(), &own).is_err());
        std::fs::remove_file(session.path().join("ckptbpf")).unwrap();
        std::fs::create_dir(session.path().join("ckptbpf")).unwrap();
        std::fs::set_permissions(session.path().join("ckptbpf"), PermissionsExt::from_mode(0o755)).unwrap();
        let error = RuntimeDir::in_session(session.path(), &own).unwrap_err();
        assert!(matches!(error, RuntimeDirError::Unsafe { .. }), "{error}");
    }
}

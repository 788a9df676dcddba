//! A job's directory: found, made, opened and looked into, always with the file-system ids of its owner.
//!
//! ```text
//! DIR/000001.ckpt …   one file a generation, numbers only grow
//! DIR/job.json        the record of its last writer       DIR/lock   held by the one that writes now
//! DIR/events.jsonl    one line a phase                    DIR/cut/   what a rollback cut off
//! DIR/old-1/ …        what `launch --new` moved aside       DIR/pointer  see `pointer`
//! ```
//! Invariants: the directory is held by descriptor, so that renaming it or a parent changes nothing; no symbolic
//! link is followed inside it; mode 0700, files 0600.

mod error;

pub use error::DirectoryError;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use super::record::{JobRecord, RECORD_LIMIT};
use crate::sys::ids::{Assumed, FsIds};

/// The directory that the rule names: `-d`, else `$CKPTBPF_DIR` (`environment`), else `./ckpt_<program>`.
///
/// ```
/// use ckptbpf::job::directory::resolve;
/// use std::{ffi::OsStr, path::Path};
/// assert_eq!(resolve(None, None, OsStr::new("/usr/bin/python3")), Path::new("./ckpt_python3"));
/// ```
pub fn resolve(given: Option<&Path>, environment: Option<&OsStr>, program: &OsStr) -> PathBuf {
    if let Some(dir) = given {
        return dir.to_owned();
    }
    if let Some(dir) = environment.filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    let mut name = OsString::from("ckpt_");
    name.push(Path::new(program).file_name().unwrap_or(OsStr::new("program")));
    Path::new(".").join(name)
}

/// [`resolve`] with this process's environment.
pub fn resolve_here(given: Option<&Path>, program: &OsStr) -> PathBuf {
    resolve(given, std::env::var_os("CKPTBPF_DIR").as_deref(), program)
}

/// The generation that a file name stands for: six digits, more only where it takes them, `.ckpt`.
pub fn generation_of(name: &[u8]) -> Option<u64> {
    let digits = name.strip_suffix(b".ckpt")?;
    let is_padded = digits.len() == 6 || (digits.len() > 6 && digits[0] != b'0');
    if !is_padded || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id > 0)
}

/// A job's directory, held by descriptor.
#[derive(Debug)]
pub struct JobDir {
    path: PathBuf,
    fd: OwnedFd,
    ids: FsIds,
}

impl JobDir {
    /// Opens the directory for a new job of `owner`, and makes it (and its parents) where it is not there.
    pub fn create(path: &Path, owner: &FsIds) -> Result<Self, DirectoryError> {
        let fail = |what| move |source: io::Error| DirectoryError::io(path, what, source);
        let _as = owner.assume().map_err(fail("take its owner's file-system ids"))?;
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            std::fs::create_dir_all(parent).map_err(fail("make the directory above it"))?;
        }
        match builder.create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail("make it")(error)),
            _ => {}
        }
        let dir = Self::from_fd(path, open_dir(path).map_err(fail("open it"))?, owner.clone());
        dir.make_private()?;
        Ok(dir)
    }

    /// Opens an existing job directory: with `caller`'s ids, or, for root, with those of its owner.
    ///
    /// See [`reader_of`].
    pub fn open(path: &Path, caller: &FsIds) -> Result<Self, DirectoryError> {
        let fail = |what| move |source: io::Error| DirectoryError::io(path, what, source);
        let reader = reader_of(path, caller)?;
        let fd = {
            let _as = reader.assume().map_err(fail("take its owner's file-system ids"))?;
            open_dir(path).map_err(fail("open it"))?
        };
        let stat = fstat(&fd).map_err(|errno| DirectoryError::io(path, "look at it", errno))?;
        let theirs = nix::unistd::geteuid().is_root() && stat.st_uid != reader.uid;
        let ids = if theirs { owner_ids(stat.st_uid, stat.st_gid) } else { reader };
        Ok(Self::from_fd(path, fd, ids))
    }

    fn from_fd(path: &Path, fd: OwnedFd, ids: FsIds) -> Self {
        Self { path: path.to_owned(), fd, ids }
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path from the root, for records that are read elsewhere.
    pub fn absolute(&self) -> PathBuf {
        let known = std::fs::canonicalize(&self.path).or_else(|_| std::path::absolute(&self.path));
        known.unwrap_or_else(|_| self.path.clone())
    }

    /// A path that reaches the directory through its descriptor, whatever has been renamed since.
    pub fn proc_path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// The ids with which its files are made and opened.
    pub fn ids(&self) -> &FsIds {
        &self.ids
    }

    /// Takes those ids on this thread until the guard is dropped.
    pub fn assume(&self) -> Result<Assumed, DirectoryError> {
        self.ids.assume().map_err(|error| self.io("take its owner's file-system ids", error))
    }

    /// Owner of the directory, by fstat.
    pub fn owner(&self) -> Result<u32, DirectoryError> {
        Ok(self.stat()?.st_uid)
    }

    /// Numbers of the generations whose files are there, oldest first. What is in them is `image`'s to say.
    pub fn generations(&self) -> Result<Vec<u64>, DirectoryError> {
        let mut ids: Vec<u64> =
            self.names()?.iter().filter_map(|name| generation_of(name.as_bytes())).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Refuses a directory that holds checkpoints: `launch` never begins beside an older run.
    pub fn refuse_checkpoints(&self) -> Result<(), DirectoryError> {
        match self.generations()?.last() {
            Some(&newest) => Err(DirectoryError::HoldsCheckpoints { path: self.shown(), newest }),
            None => Ok(()),
        }
    }

    /// Refuses a directory without checkpoints: there is nothing to restart.
    pub fn require_checkpoints(&self) -> Result<(), DirectoryError> {
        if self.generations()?.is_empty() {
            Err(DirectoryError::NoCheckpoint { path: self.shown() })
        } else {
            Ok(())
        }
    }

    /// `--new`: moves generations, record, events and cut files to `DIR/old-N/`, newest generation first, so that
    /// what an interruption leaves behind can be restarted. Call with the lock held. None: nothing was there.
    pub fn move_aside(&self) -> Result<Option<PathBuf>, DirectoryError> {
        let _as = self.assume()?;
        let names = self.names()?;
        let mut moving: Vec<&OsString> =
            names.iter().filter(|name| generation_of(name.as_bytes()).is_some()).collect();
        if moving.is_empty() {
            return Ok(None);
        }
        moving.sort_unstable_by_key(|name| std::cmp::Reverse(generation_of(name.as_bytes())));
        let beside = ["job.json", "events.jsonl", "events.jsonl.1", "cut", "remade.json"];
        moving.extend(names.iter().filter(|name| beside.iter().any(|known| **name == **known)));
        let old =
            names.iter().filter_map(|name| name.to_str()?.strip_prefix("old-")?.parse::<u32>().ok()).max();
        // In 64 bits there is always a next one.
        let target = format!("old-{}", old.map_or(1, |old| u64::from(old) + 1));
        mkdirat(&self.fd, target.as_str(), Mode::S_IRWXU)
            .map_err(|errno| self.io("make old-N in it", errno))?;
        let into = open_at(&self.fd, OsStr::new(&target), OFlag::O_DIRECTORY | OFlag::O_RDONLY)
            .map_err(|error| self.io("open old-N in it", error))?;
        for name in moving {
            renameat(&self.fd, name.as_os_str(), &into, name.as_os_str())
                .map_err(|errno| self.io("move an earlier generation to old-N", errno))?;
        }
        fsync(&into)
            .and_then(|()| fsync(&self.fd))
            .map_err(|errno| self.io("make the move durable", errno))?;
        Ok(Some(self.path.join(target)))
    }

    /// The last writer's record, if there is one.
    pub fn read_record(&self) -> Result<Option<JobRecord>, DirectoryError> {
        let _as = self.assume()?;
        let file = match open_at(&self.fd, OsStr::new("job.json"), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => File::from(fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("open job.json in it", error)),
        };
        let mut text = Vec::new();
        file.take(RECORD_LIMIT)
            .read_to_end(&mut text)
            .map_err(|error| self.io("read job.json in it", error))?;
        let record = serde_json::from_slice(&text);
        record.map(Some).map_err(|source| DirectoryError::BadRecord { path: self.shown(), source })
    }

    /// Replaces the record: a reader finds the old one or the new one, also after a crash.
    pub fn write_record(&self, record: &JobRecord) -> Result<(), DirectoryError> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| DirectoryError::BadRecord { path: self.shown(), source })?;
        let write = || -> io::Result<()> {
            let temporary = OsStr::new("job.json.tmp");
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
            let mut file = File::from(open_at(&self.fd, temporary, flags)?);
            file.write_all(&text)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            renameat(&self.fd, temporary, &self.fd, "job.json")?;
            Ok(fsync(&self.fd)?)
        };
        let _as = self.assume()?;
        write().map_err(|error| self.io("write job.json in it", error))
    }

    /// Opens a file of the directory, 0600 if it is made; never through a symbolic link.
    pub fn open_file(&self, name: &str, flags: OFlag) -> Result<File, DirectoryError> {
        let _as = self.assume()?;
        let opened = open_at(&self.fd, OsStr::new(name), flags);
        opened.map(File::from).map_err(|error| self.io("open a file in it", error))
    }

    /// Makes a new file in the directory `below` in it, and that where it is not there; never through a symbolic link. Where there is
    /// one of that name, it is the first of `name.1`, `name.2` and so on that is not there.
    pub fn create_below(&self, below: &str, name: &str) -> Result<File, DirectoryError> {
        let _as = self.assume()?;
        match mkdirat(&self.fd, below, Mode::S_IRWXU) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(self.io("make a directory in it", errno)),
        }
        let make = || -> io::Result<File> {
            let below = open_at(&self.fd, OsStr::new(below), OFlag::O_DIRECTORY | OFlag::O_RDONLY)?;
            let names = std::iter::once(name.to_owned()).chain((1..).map(|n: u32| format!("{name}.{n}")));
            for name in names {
                match open_at(&below, OsStr::new(&name), OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => return made.map(File::from),
                }
            }
            Err(io::ErrorKind::AlreadyExists.into())
        };
        make().map_err(|error| self.io("make a file in a directory of it", error))
    }

    /// Renames a file within the directory, replacing what has that name.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), DirectoryError> {
        let _as = self.assume()?;
        renameat(&self.fd, from, &self.fd, to).map_err(|errno| self.io("rename a file in it", errno))
    }

    /// Removes a file of the directory; one that is gone already is fine.
    pub fn remove(&self, name: &str) -> Result<(), DirectoryError> {
        let _as = self.assume()?;
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.io("remove a file in it", errno)),
        }
    }

    /// Mode 0700 and the right owner, or a refusal that says what to do.
    fn make_private(&self) -> Result<(), DirectoryError> {
        let stat = self.stat()?;
        if stat.st_uid != self.ids.uid {
            return Err(DirectoryError::NotOurs {
                path: self.shown(),
                owner: stat.st_uid,
                wanted: self.ids.uid,
            });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & 0o077 == 0 {
            return Ok(());
        }
        let foreign = |name: &OsString| !is_ours(name.as_bytes());
        if self.names()?.iter().any(foreign) {
            return Err(DirectoryError::TooOpen { path: self.shown(), mode });
        }
        fchmod(&self.fd, Mode::S_IRWXU).map_err(|errno| self.io("make it private", errno))
    }

    fn stat(&self) -> Result<FileStat, DirectoryError> {
        fstat(&self.fd).map_err(|errno| self.io("look at it", errno))
    }

    fn names(&self) -> Result<Vec<OsString>, DirectoryError> {
        let _as = self.assume()?;
        let list = || -> io::Result<Vec<OsString>> {
            std::fs::read_dir(self.proc_path())?.map(|entry| Ok(entry?.file_name())).collect()
        };
        list().map_err(|error| self.io("list it", error))
    }

    pub(super) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) fn io(&self, what: &'static str, source: impl Into<io::Error>) -> DirectoryError {
        DirectoryError::io(&self.path, what, source)
    }
}

impl AsFd for JobDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The ids with which to read a path: the caller's, or, where root may do more, those of the path's owner.
///
/// Root tries `caller` (the person who called sudo) first: on a root-squashed file system only that works.
pub fn reader_of(path: &Path, caller: &FsIds) -> Result<FsIds, DirectoryError> {
    let fail = |what| move |source: io::Error| DirectoryError::io(path, what, source);
    let root = nix::unistd::geteuid().is_root();
    if !root || (caller.uid != 0 && caller.assume().and_then(|_as| File::open(path)).is_ok()) {
        return Ok(caller.clone());
    }
    let owner = std::fs::metadata(path).map_err(fail("find it"))?;
    Ok(owner_ids(owner.uid(), owner.gid()))
}

/// The ids of a directory's owner as the user database has them; without an entry there, its uid and gid alone.
fn owner_ids(uid: u32, gid: u32) -> FsIds {
    super::identity::fs_ids_of(uid).unwrap_or(FsIds { uid, gid, groups: vec![gid] })
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens a name inside a directory: not through a symbolic link, and a regular file or directory only.
fn open_at(dir: impl AsFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if let Ok(stat) = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file; remove it"));
        }
    }
    Ok(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
}

fn is_ours(name: &[u8]) -> bool {
    generation_of(name).is_some()
        || ["job.json", "lock", "events.jsonl", "events.jsonl.1", "cut", "remade.json", "pointer"]
            .iter()
            .any(|own| own.as_bytes() == name)
        || name.starts_with(b"old-")
        || name.ends_with(b".tmp")
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;

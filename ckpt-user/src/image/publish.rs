//! Names in a job's directory, and the one place where a generation gets its name.
//!
//! ```text
//! .000007.ckpt.N.tmp ──fdatasync──▶ lease ──rename──▶ 000007.ckpt ──fsync of the directory──▶ a checkpoint
//! ```
//! A temporary file is locked (flock) by its writer for as long as that lives; one without a lock is garbage.

use super::{GenerationId, ImageError};
use crate::planted;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const SUFFIX: &str = ".ckpt";
const TEMPORARY: &str = ".tmp";

/// `000007.ckpt`.
#[must_use]
pub fn file_name(id: GenerationId) -> String {
    format!("{:06}{SUFFIX}", id.0)
}

/// The generation that a file of this name holds; `None` for any other name.
pub(super) fn parse_name(name: &str) -> Option<GenerationId> {
    let digits = name.strip_suffix(SUFFIX)?;
    let id = GenerationId(digits.parse().ok().filter(|&id| id > 0)?);
    (file_name(id) == name).then_some(id)
}

/// The ids whose files are in `dir`, ascending.
pub(super) fn ids(dir: &Path) -> Result<Vec<GenerationId>, ImageError> {
    let mut found: Vec<GenerationId> = names(dir)?.iter().filter_map(|name| parse_name(name)).collect();
    found.sort_unstable();
    Ok(found)
}

fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    read().map_err(|error| ImageError::io("read the directory", dir, error))
}

/// How a finished file takes its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// A new generation: the name must be free.
    New,
    /// A merged generation takes the place of the one it was made from.
    Replace,
}

/// A file being written; dropped without [`Temporary::publish`] it is unlinked.
pub(super) struct Temporary {
    dir: PathBuf,
    path: PathBuf,
    pub(super) file: File,
    published: bool,
}

impl Temporary {
    /// Creates and locks a temporary file for generation `id`, mode 0600.
    pub(super) fn create(dir: &Path, id: GenerationId) -> Result<Temporary, ImageError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let unique = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".{}.{:x}-{unique}{TEMPORARY}", file_name(id), time.as_nanos());
            let path = dir.join(name);
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(ImageError::io("create", &path, error)),
            };
            let temporary = Temporary { dir: dir.to_path_buf(), path, file, published: false };
            // File systems without locks: nobody else can lock it either, so nobody takes it for garbage.
            let _ = temporary.file.try_lock();
            // Between create and lock it looked like garbage, and may have been cleaned.
            let metadata = temporary.file.metadata();
            if metadata.map_err(|error| ImageError::io("create", &temporary.path, error))?.nlink() > 0 {
                return Ok(temporary);
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file durable and gives it its name: the only rename of a generation in ckptbpf.
    ///
    /// # Errors
    /// Before the rename: nothing changed, and the temporary goes. `Exists`: the name is taken. A failed fsync of the
    /// directory comes after the rename: the generation is complete, but may not survive a power loss.
    pub(super) fn publish(
        mut self,
        id: GenerationId,
        naming: Naming,
        check_lease: impl FnOnce() -> Result<(), String>,
    ) -> Result<PathBuf, ImageError> {
        let path = self.dir.join(file_name(id));
        let directory = File::open(&self.dir).map_err(|error| ImageError::io("open", &self.dir, error))?;
        if !planted::is("no-fsync") {
            self.file.sync_data().map_err(|error| ImageError::io("make durable", &path, error))?;
        }
        check_lease().map_err(|reason| ImageError::Lease { dir: self.dir.clone(), reason })?;
        let renamed = match naming {
            Naming::New => self.rename_new(&path),
            Naming::Replace => std::fs::rename(&self.path, &path),
        };
        renamed.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => ImageError::Exists { path: path.clone() },
            _ => ImageError::io("name", &path, error),
        })?;
        self.published = true;
        // Readers may have it from here on.
        let _ = self.file.unlock();
        directory.sync_all().map_err(|error| ImageError::io("make durable", &self.dir, error))?;
        Ok(path)
    }

    fn rename_new(&self, path: &Path) -> std::io::Result<()> {
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
            // NFS and some others do not know the flag.
            Err(nix::Error::EINVAL | nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => {
                link_new(&self.path, path)
            }
            other => Ok(other?),
        }
    }
}

/// Renames without replacing where renameat2(2) cannot: a second link does not replace either.
pub(super) fn link_new(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to)?;
    // The generation has its name; a first name that stays is a temporary like any other.
    let _ = std::fs::remove_file(from);
    Ok(())
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // Nothing to tell: clean_temporaries() takes what could not be unlinked here.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files in `dir` whose writers are gone; gives their length in bytes, of all together.
///
/// Call it with the right to write `dir` taken. A file whose lock is held, or that cannot be locked here (file systems without
/// locks), stays. Where locks of other machines do not reach this one, what goes may still be written there: by somebody
/// who has lost that right, and whose [`Temporary::publish`] would not give it its name any more.
///
/// # Errors
/// `Io` when the directory cannot be read or a file cannot be removed.
pub fn clean_temporaries(dir: &Path) -> Result<u64, ImageError> {
    let mut freed = 0;
    for name in names(dir)?.iter().filter(|name| is_temporary(name)) {
        let path = dir.join(name);
        // For writing, because NFS gives exclusive locks on nothing else.
        let Ok(file) =
            OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path)
        else {
            continue;
        };
        if file.try_lock().is_err() {
            continue;
        }
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        match std::fs::remove_file(&path) {
            Ok(()) => freed += length,
            // It has its name by now, or its writer has removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(ImageError::io("remove", &path, error)),
        }
    }
    Ok(freed)
}

/// Whether it is the name of a generation that is not finished: [`Temporary::create`] gives such names.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(TEMPORARY));
    inner.and_then(|inner| inner.rsplit_once('.')).is_some_and(|(named, _)| parse_name(named).is_some())
}

/// Marks a generation as in use; also `true` where the file system has no locks.
///
/// `false`: prune is just deleting or replacing this file.
pub(super) fn lock_for_reading(file: &File) -> bool {
    !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Opens and locks a generation in order to delete or replace it; `None` while a reader holds it, and for a symbolic link,
/// which is nothing of ours.
pub(super) fn lock_for_pruning(path: &Path) -> Result<Option<File>, ImageError> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(None),
        opened => opened.map_err(|error| ImageError::io("open", path, error))?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        _ => Ok(Some(file)),
    }
}

//! Files of a tmpfs that have lost the name by which they were opened.
//!
//! sem_open(3) gives a semaphore its name by link(2), after it was mapped under another one that goes: so maps shows a name that was
//! removed, and the file may have another. Whether it has is found out by looking at all names of its file system.

use super::vma::Raw;
use crate::object::deleted;
use crate::task::mounts::{self, Mount};
use nix::unistd::geteuid;
use std::fs::{DirEntry, Metadata, read_dir};
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Names that are looked at.
const NAMES: usize = 1 << 16;

/// What has become of such a file.
#[derive(Debug)]
pub enum Found {
    /// It has another name.
    Named(PathBuf, Metadata),
    /// It has none; the path that it had.
    Nameless(PathBuf),
}

/// Looks for the file behind a mapping that has lost its name; none where it is of another file system, or not to be found out.
pub fn look(raw: &Raw) -> Option<Found> {
    let former = deleted::former(Path::new(&raw.name)).filter(|path| path.is_absolute())?;
    let device = (libc::major(raw.device), libc::minor(raw.device));
    let is_it = |mount: &Mount| mount.device == device && mount.kind == "tmpfs" && mount.is_whole;
    let mount = mounts::ours().ok()?.into_iter().find(is_it)?;
    let found = search(mount.path, (raw.device, raw.inode)).ok()?;
    Some(found.map_or_else(|| Found::Nameless(former.to_owned()), |(path, its)| Found::Named(path, its)))
}

/// A name of a file, by device and inode, in the file system that is mounted at `top`. Directories of others that are closed to us
/// have none of the user's files.
///
/// # Errors
/// They cannot all be looked at.
fn search(top: PathBuf, identity: (u64, u64)) -> io::Result<Option<(PathBuf, Metadata)>> {
    // Something else may be mounted over it.
    if top.metadata()?.dev() != identity.0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    let (mut directories, mut left) = (vec![top], NAMES);
    while let Some(directory) = directories.pop() {
        let names = match read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_ours(&directory) => continue,
            names => names?,
        };
        for entry in names {
            let entry = entry?;
            left = left.checked_sub(1).ok_or_else(|| io::Error::other("it has too many names"))?;
            let is_folder = entry.file_type()?.is_dir();
            let Some(its) = of(&entry, identity, is_folder) else { continue };
            if is_folder {
                directories.push(entry.path());
            } else {
                return Ok(Some((entry.path(), its)));
            }
        }
    }
    Ok(None)
}

/// Of a directory of the same file system, or of the file itself.
fn of(entry: &DirEntry, (device, inode): (u64, u64), is_folder: bool) -> Option<Metadata> {
    if !is_folder && entry.ino() != inode {
        return None;
    }
    // It may be gone again.
    let its = entry.metadata().ok()?;
    (its.dev() == device && (is_folder || its.ino() == inode)).then_some(its)
}

fn is_ours(directory: &Path) -> bool {
    directory.metadata().is_ok_and(|its| its.uid() == geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir, hard_link, remove_file};

    #[test]
    fn a_file_is_found_under_any_name_that_it_has() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        create_dir(path("folder")).unwrap();
        create_dir(path("other")).unwrap();
        File::create(path("other/file")).unwrap();
        let file = File::create(path("first")).unwrap();
        let its = file.metadata().unwrap();
        let find = || search(top.path().to_owned(), (its.dev(), its.ino())).unwrap().map(|found| found.0);
        assert_eq!(find(), Some(path("first")));
        hard_link(path("first"), path("folder/second")).unwrap();
        remove_file(path("first")).unwrap();
        assert_eq!(find(), Some(path("folder/second")));
        remove_file(path("folder/second")).unwrap();
        assert_eq!(find(), None);
    }
}

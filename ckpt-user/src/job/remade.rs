//! Files of memory that are gone with the machine they were on: POSIX shared memory lies in a tmpfs, of which another node, or
//! this one started anew, has nothing. What a program had mapped as a whole is in the image: a restart makes it again.
//!
//! It is another inode then. The directory's table ([`super::known_files`]) tells which one, so that each later restart knows the
//! file for what it is.

use super::directory::JobDir;
use super::files::is_memory;
use super::known_files::{Identity, Table, identity};
use super::options::FilesPolicy;
use crate::image::Chain;
use crate::machine;
use crate::object::deleted::{self, DeletedRecord};
use crate::object::file::FileRecord;
use crate::object::path_of;
use crate::record::{Image, SharedObject};
use crate::sys::ids::{self, FsIds};
use crate::task::limits;
use anyhow::{Context, bail};
use nix::fcntl::{AT_FDCWD, AtFlags, posix_fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::linkat;
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files that a restart has made: they go with it if it fails.
#[derive(Debug)]
pub struct Made {
    files: Vec<(PathBuf, Identity)>,
    owner: FsIds,
}

impl Made {
    /// The program has them now.
    pub fn keep(mut self) {
        self.files.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Ok(_as_owner) = self.owner.assume() else { return };
        for (path, made) in &self.files {
            if fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == *made) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// A file of a tmpfs that the program had mapped as a whole.
struct Shared {
    /// In UTF-8: others have no place in the table.
    path: String,
    was: Identity,
    record: DeletedRecord,
}

impl Shared {
    fn of(object: &SharedObject) -> Option<Self> {
        let (file, record) = (object.file.as_ref()?, object.tmpfs.as_ref()?);
        let path = file.path();
        let directory = path.parent().filter(|_| path.is_absolute())?.as_os_str().as_encoded_bytes().to_vec();
        Some(Self {
            path: path.to_str()?.to_owned(),
            was: (file.device, file.inode),
            record: DeletedRecord {
                directory,
                size: object.size,
                space: object.space,
                mode: record.mode & 0o777,
                modified_ns: file.modified_ns,
                ..record.clone()
            },
        })
    }

    fn is_in(&self, image: &Image) -> bool {
        let (path, (device, inode), size) = (self.path.clone().into_bytes(), self.was, self.record.size);
        is_memory(image, &FileRecord { path, device, inode, size, ..FileRecord::default() })
    }

    /// Makes it, without its name; none where there is no tmpfs for it.
    fn make(&self, chain: &Chain) -> io::Result<Option<File>> {
        let record = &self.record;
        let file = match deleted::unnamed(path_of(&record.directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            made => made?,
        };
        if fstatfs(&file)?.filesystem_type() != TMPFS_MAGIC {
            return Ok(None);
        }
        if record.allocated && record.size > 0 {
            posix_fallocate(&file, 0, record.size.try_into().map_err(io::Error::other)?)?;
        }
        deleted::fill(record, &file, chain)?;
        deleted::finish(record, &file)?;
        Ok(Some(file))
    }
}

/// Makes those that are gone, and has `image` speak of the files that are there. Which those are is told by the directory
/// restarted `from`, and by that of new checkpoints, which is told what is made now. Where files are only compared, nothing is
/// made; what cannot be made is found to be missing, with all other files, by whoever compares.
///
/// # Errors
/// Named: a file that has the name and is not the program's, one that cannot be made.
pub fn make(
    image: &mut Image,
    chain: &Chain,
    (from, to): (&JobDir, &JobDir),
    owner: &FsIds,
    policy: FilesPolicy,
) -> anyhow::Result<Made> {
    let mut made = Made { files: Vec::new(), owner: owner.clone() };
    let all: Vec<Shared> =
        image.objects.iter().filter_map(Shared::of).filter(|shared| shared.is_in(image)).collect();
    if all.is_empty() {
        return Ok(made);
    }
    limits::raise_own();
    let (boot_id, then) = (machine::boot_id(), image.machine.as_ref().map_or("", |m| m.boot_id.as_str()));
    let mut table = Table::read(from, chain.owner_uid())?;
    if from.path() != to.path() {
        table.take_in(Table::read(to, chain.owner_uid())?);
    }
    let (mut now, mut anew) = (HashMap::new(), Vec::new());
    for shared in &all {
        let path = Path::new(&shared.path);
        match as_owner(owner, || fs::symlink_metadata(path)) {
            Ok(found) if table.has(&shared.path, boot_id, identity(&found)) => {
                require_owner(shared, &found)?;
                now.insert(shared.was, identity(&found));
            }
            Ok(_) if !then.is_empty() && then != boot_id => bail!(
                "{}: it is another file than at the checkpoint: that one is gone with its machine, and this one would be \
                 written over; remove it if nobody needs it",
                path.display()
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound && policy != FilesPolicy::Check => {
                let file = as_owner(owner, || shared.make(chain)).with_context(|| cannot(path))?;
                if let Some(file) = file {
                    let is = identity(&file.metadata().with_context(|| cannot(path))?);
                    anew.push((shared, file, is));
                }
            }
            _ => {}
        }
    }
    if !anew.is_empty() || !now.is_empty() {
        all.iter().for_each(|shared| table.note_first(&shared.path, then, shared.was));
    }
    if !anew.is_empty() {
        anew.iter().for_each(|(shared, _, is)| table.note(&shared.path, boot_id, *is));
        // Whoever finds one of the files finds there what it is.
        table.write(to)?;
    }
    for (shared, file, is) in anew {
        let path = Path::new(&shared.path);
        made.files.push((path.to_owned(), is));
        as_owner(owner, || name(&file, path)).with_context(|| cannot(path))?;
        log::info!("{}: it was gone with its machine, and is made again", path.display());
        now.insert(shared.was, is);
    }
    image.renumber(&now);
    Ok(made)
}

fn require_owner(shared: &Shared, found: &Metadata) -> anyhow::Result<()> {
    let Shared { path, record, .. } = shared;
    if ids::owners_to_give((record.uid, record.gid), (found.uid(), found.gid())).is_some() {
        bail!(
            "{path}: it belongs to uid {}, gid {}, and did not at the checkpoint",
            found.uid(),
            found.gid()
        );
    }
    Ok(())
}

fn cannot(path: &Path) -> String {
    format!("{}: it is gone, and cannot be made again", path.display())
}

fn as_owner<T>(owner: &FsIds, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _as_owner = owner.assume()?;
    act()
}

/// Gives it the name, which nobody has.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(AT_FDCWD, link.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
}

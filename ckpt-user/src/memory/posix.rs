//! POSIX shared memory (shm_open(3), sem_open(3)): files of tmpfs, which are gone with the machine they were on.
//!
//! What of them a program has mapped is saved like all of its memory. What else it takes to make one again under its
//! name is kept beside it.

use super::vma::MappedFile;
use crate::object::deleted::{self, DeletedRecord};
use crate::sys::xattr;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of the mapped file behind the magic link `link`, if it is one with a name in a tmpfs. Not of one with an access control list,
/// which would have to be made again, too; what cannot be found out costs no checkpoint.
pub fn of(link: &Path, file: &MappedFile, metadata: &Metadata) -> Option<DeletedRecord> {
    // One of a disk needs no more asking.
    let may_be = !file.deleted && libc::major(metadata.dev()) == 0;
    let is_memory = || statfs(link).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let is_plain = || xattr::has_acl(link).is_ok_and(|has| !has);
    (may_be && is_memory() && is_plain()).then(|| deleted::of(link, file.path(), metadata).ok()).flatten()
}

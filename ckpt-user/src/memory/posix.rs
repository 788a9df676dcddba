//! POSIX shared memory (shm_open(3), sem_open(3)): files of tmpfs, which are gone with the machine they were on.
//!
//! What of them a program has mapped is saved like all of its memory. What else it takes to make one again under its
//! name is kept beside it.

use super::vma::MappedFile;
use crate::object::deleted::{self, DeletedRecord};
use crate::sys::xattr;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::fs::Metadata;
use std::io;
use std::path::Path;

/// Of the mapped file behind the magic link `link`, if it is one with a name in a tmpfs. Not of one with an access control list,
/// which would have to be made again, too.
pub fn of(link: &Path, file: &MappedFile, metadata: &Metadata) -> io::Result<Option<DeletedRecord>> {
    if file.deleted || statfs(link)?.filesystem_type() != TMPFS_MAGIC || xattr::has_acl(link)? {
        return Ok(None);
    }
    deleted::of(link, file.path(), metadata).map(Some).map_err(io::Error::other)
}

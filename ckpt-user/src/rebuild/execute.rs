//! A skeleton executes its program's file, where nobody would believe that it has: /proc/PID/exe shows then what it did.
//!
//! It stands at the end of the call, before the first instruction, and is made a skeleton anew. What it has open stays so
//! ([`super::nursery`] sees to that). A set-user-id file gives nothing to who is traced by its own user (execve(2)), and not to a
//! process of an image either, as nobody has more there than that user.

use super::objects::Objects;
use super::skeleton::{Skeleton, occupy};
use crate::memory::vma::MappedFile;
use crate::sys::inject::Call;
use std::io;
use std::os::fd::AsRawFd;

/// Has it execute `file`, which it has open as this process has.
///
/// # Errors
/// What execve(2) says: EACCES where its user may not, or nobody in that file system; ETXTBSY while somebody has it open for writing.
pub fn execute(skeleton: Skeleton, objects: &Objects, file: &MappedFile) -> io::Result<Skeleton> {
    let Skeleton { mut remote, spare, .. } = skeleton;
    let file = objects.files.get(file).ok_or(io::ErrorKind::InvalidData)?;
    let (scratch, gadget) = (remote.scratch().start, remote.gadget());
    let name = remote.string(b"")?;
    let mut list = name.to_le_bytes().to_vec();
    list.extend([0; 8]);
    let arguments = remote.data(&list)?;
    let environment = arguments + 8;
    let number = file.as_raw_fd() as u64;
    let flags = libc::AT_EMPTY_PATH as u64;
    let call = Call::new(libc::SYS_execveat, &[number, name, arguments, environment, flags]);
    let result = remote.step(gadget, call)?;
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    occupy(remote.into_thread()?, (scratch, spare))
}

//! Memory of memfd_create(2): an object of its own that may be mapped, open, or both. Its content is shared memory
//! ([`crate::memory::shared`]); here are its name, its seals, and the descriptions that refer to it.

use super::{Object, Seen, file};
use crate::memory::capture::Objects;
use crate::memory::hugetlb;
use crate::refusal::{Reading, Refusal};
use crate::sys::ids;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::OnceLock;

/// What memfd_create(2) and fcntl(2) made of it, besides size and content.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Memfd {
    /// As given to memfd_create(2).
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// F_SEAL_*.
    #[prost(uint32, tag = "2")]
    pub seals: u32,
    /// Permission bits.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
}

/// A description of a shared object.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SharedRecord {
    /// Index into the image's shared objects.
    #[prost(uint32, tag = "1")]
    pub object: u32,
}

const MODE: u32 = 0o7777;
/// MFD_NOEXEC_SEAL and MFD_EXEC (linux/memfd.h, Linux 6.3).
const NOEXEC_SEAL: u32 = 8;
const EXEC: u32 = 16;
/// F_SEAL_EXEC (linux/fcntl.h).
pub const SEAL_EXEC: u32 = 32;

/// The name, if this is such memory: only the kernel can make files on that file system, each kind with a name that
/// begins in its own way.
pub fn name<'t>(target: &'t Path, metadata: &Metadata) -> Option<&'t [u8]> {
    let name = target.as_os_str().as_bytes().strip_prefix(b"/memfd:")?.strip_suffix(b" (deleted)")?;
    is_internal(metadata).then_some(name)
}

/// The device of the file system where the kernel keeps shared memory that has no name in any directory.
pub fn internal_device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let specimen = own(c"ckptbpf", MFdFlags::empty()).ok()?;
        specimen.metadata().ok().map(|m| m.dev())
    })
}

/// Whether a file lies there, or is memory of huge pages.
pub fn is_internal(metadata: &Metadata) -> bool {
    internal_device() == Some(metadata.dev()) || hugetlb::page_size(metadata).is_some()
}

/// Memory of our own. It is never executed: so it may be had wherever any may (vm.memfd_noexec).
pub fn own(name: &CStr, flags: MFdFlags) -> io::Result<File> {
    let make =
        |more: u32| memfd_create(name, flags | MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(more));
    let made = make(NOEXEC_SEAL).or_else(|error| match error {
        // Before Linux 6.3.
        Errno::EINVAL => make(0),
        error => Err(error),
    });
    Ok(File::from(made?))
}

/// The record of the memory behind the magic link `link`.
pub fn of(link: &Path, name: &[u8], metadata: &Metadata) -> io::Result<Memfd> {
    let seals = fcntl(&File::open(link)?, FcntlArg::F_GET_SEALS)? as u32;
    let (mode, uid, gid) = (metadata.mode() & MODE, metadata.uid(), metadata.gid());
    Ok(Memfd { name: name.to_vec(), seals, mode, uid, gid })
}

/// The record of memory that nobody has open, so that nobody can tell what else there is to know of it.
pub fn unseen(name: &[u8]) -> Memfd {
    Memfd { name: name.to_vec(), seals: 0, mode: 0o777, uid: ids::UNKNOWN, gid: ids::UNKNOWN }
}

/// A descriptor of such memory; `None` when it is something else.
pub fn capture(seen: &Seen, metadata: &Metadata, objects: &mut Objects) -> Option<Result<Object, Refusal>> {
    let target = seen.target.as_os_str().as_bytes();
    let Some(name) = name(&seen.target, metadata) else {
        let unknown = metadata.nlink() == 0 && target.starts_with(b"/memfd:");
        return unknown.then(|| Err(seen.refuse("memory of an unknown kind cannot be saved yet")));
    };
    if seen.is_inherited() {
        return Some(Err(seen.refuse("its memory is shared with whoever has it outside of the program")));
    }
    let link = seen.link();
    let object = objects.index(metadata, |object| {
        object.memfd = Some(of(&link, name, metadata)?);
        Ok(())
    });
    Some(
        object
            .reading(seen.pid, "memory of memfd_create(2)")
            .map(|object| Object::Shared(SharedRecord { object })),
    )
}

/// Makes it again: empty, of no size, without seals; of huge pages of `huge_page` bytes, if that is not 0.
pub fn create(record: &Memfd, huge_page: u64) -> io::Result<File> {
    let name = std::ffi::CString::new(record.name.as_slice())?;
    let kind = if record.seals & SEAL_EXEC != 0 && record.mode & 0o111 == 0 { NOEXEC_SEAL } else { EXEC };
    let huge = MFdFlags::from_bits_retain(hugetlb::flags(huge_page, libc::MFD_HUGETLB));
    let flags = |more: u32| {
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | huge | MFdFlags::from_bits_retain(more)
    };
    // Before Linux 6.3 there is neither.
    let made = memfd_create(&*name, flags(kind)).or_else(|error| match error {
        Errno::EINVAL => memfd_create(&*name, flags(0)),
        error => Err(error),
    });
    match made {
        Err(Errno::EACCES) if kind == EXEC => Err(io::Error::new(io::ErrorKind::PermissionDenied, FORBIDDEN)),
        made => Ok(File::from(made?)),
    }
}

const FORBIDDEN: &str = "this machine allows none that may be executed, as the program's may be (vm.memfd_noexec is 2): \
    have root allow it (sysctl vm.memfd_noexec=1), or restart on another machine";

/// Owner, mode and seals, when nothing is to be changed any more.
pub fn finish(record: &Memfd, file: &File) -> io::Result<()> {
    let now = file.metadata()?;
    if let Some((user, group)) = ids::owners_to_give((record.uid, record.gid), (now.uid(), now.gid())) {
        fchown(file, user, group)?;
    }
    if now.mode() & MODE != record.mode & MODE {
        file.set_permissions(Permissions::from_mode(record.mode & MODE))?;
    }
    let missing = record.seals & !(fcntl(file, FcntlArg::F_GET_SEALS)? as u32);
    if missing != 0 {
        fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(missing as i32)))?;
    }
    Ok(())
}

/// A description of its own of the object `shared`.
pub fn reopen(shared: &OwnedFd, flags: u32, position: u64) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
    let mut file = file::open(Path::new(&path), flags)?;
    if flags & libc::O_PATH as u32 == 0 {
        file.seek(SeekFrom::Start(position))?;
    }
    Ok(file.into())
}

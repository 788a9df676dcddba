//! Regular files, directories and device nodes: opened again by path, checked to be the same.

use super::ends::Ends;
use super::handle::FileHandle;
use super::reach::leads_to;
use super::{Object, Seen, deleted, path_of};
use crate::sys::ids::FsIds;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC,
    TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs,
};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A regular file or directory, as it was at the checkpoint.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FileRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub device: u64,
    #[prost(uint64, tag = "3")]
    pub inode: u64,
    /// Bytes.
    #[prost(uint64, tag = "4")]
    pub size: u64,
    #[prost(bool, tag = "5")]
    pub directory: bool,
    #[prost(int64, tag = "6")]
    pub modified_ns: i64,
    /// Of one that the program both reads and writes.
    #[prost(message, optional, tag = "7")]
    pub ends: Option<Ends>,
    /// Of a regular file whose device has a number of a mount.
    #[prost(message, optional, tag = "8")]
    pub handle: Option<FileHandle>,
}

/// A character device that keeps no state of the descriptor: /dev/null and its like.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct DeviceRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

/// Memory devices without state (Documentation/admin-guide/devices.txt, major 1).
const STATELESS: [u64; 5] =
    [libc::makedev(1, 3), libc::makedev(1, 5), libc::makedev(1, 7), libc::makedev(1, 8), libc::makedev(1, 9)];

impl FileRecord {
    pub fn of(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.as_os_str().as_bytes().to_vec(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            directory: metadata.is_dir(),
            modified_ns: modified(metadata),
            ends: None,
            handle: None,
        }
    }

    pub fn path(&self) -> &Path {
        path_of(&self.path)
    }

    pub fn is_same_inode(&self, metadata: &Metadata) -> bool {
        metadata.dev() == self.device && metadata.ino() == self.inode
    }

    /// The same, of a file whose content does not matter.
    pub fn is_still_there(&self, metadata: &Metadata) -> bool {
        self.is_same_inode(metadata) || (metadata.dev() != self.device && self.directory == metadata.is_dir())
    }

    /// The very file; or, on another device (another node, another mount), one that looks the same.
    fn is_still(&self, metadata: &Metadata) -> bool {
        self.is_same_inode(metadata)
            || (metadata.dev() != self.device
                && (self.directory || (metadata.size() == self.size && self.is_as_old(metadata))))
    }

    /// Nothing has been written to it since; but within a tick of the clock (4 ms) the time may stay as it is.
    pub fn is_as_old(&self, metadata: &Metadata) -> bool {
        modified(metadata) == self.modified_ns
    }
}

fn modified(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// # Errors
/// The reason why a restart could not open it again.
pub fn capture(seen: &Seen, metadata: &Metadata) -> Result<Object, String> {
    let path = match deleted::former(&seen.target) {
        Some(former) if metadata.nlink() == 0 => return deleted::capture(seen, former, metadata),
        None if deleted::is_hidden(&seen.target, &seen.link()) => {
            return deleted::capture(seen, &seen.target, metadata);
        }
        Some(former) if !leads_to(&seen.target, metadata, seen.pid)? => {
            &deleted::other_name(former, metadata, seen.pid)?
        }
        _ => &seen.target,
    };
    if !leads_to(path, metadata, seen.pid)? {
        return Err("the file has been renamed since it was opened".to_owned());
    }
    let handle = FileHandle::of(&seen.link(), metadata);
    Ok(Object::File(FileRecord { handle, ..FileRecord::of(path, metadata) }))
}

/// What O_PATH refers to, of any kind: a name is all there is to it.
///
/// # Errors
/// The reason why a restart could not open it again.
pub fn capture_path(seen: &Seen, metadata: &Metadata) -> Result<Object, String> {
    if leads_to(&seen.target, metadata, seen.pid)? {
        Ok(Object::File(FileRecord::of(&seen.target, metadata)))
    } else {
        Err("what it refers to (O_PATH) has been removed".to_owned())
    }
}

/// The record, if a restart needs nothing but to open the node again.
pub fn capture_device(seen: &Seen, metadata: &Metadata) -> Option<Object> {
    let path = seen.target.as_os_str().as_bytes().to_vec();
    STATELESS
        .contains(&metadata.rdev())
        .then(|| Object::Device(DeviceRecord { path, number: metadata.rdev() }))
}

/// Flags that open(2) acts on once and that must not act again.
const ONCE: u32 = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;

/// A file of O_TMPFILE has been given a name since. That flag is one for directories, too, which no such file is.
fn without_tmpfile(flags: u32) -> u32 {
    let has_been = flags & (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32 != 0;
    if has_been { flags & !(libc::O_TMPFILE as u32) } else { flags }
}

/// Opens the path with the flags of a description. What its mode forbids the owner of a regular file, who could change that,
/// is done with ckptbpf's own rights: it may have been opened when it was made, or when its mode was another one.
pub fn open(path: &Path, flags: u32) -> io::Result<File> {
    let flags = without_tmpfile(flags);
    let opened = open_as(path, flags).or_else(|error| match error.raw_os_error() {
        Some(libc::EACCES) => as_its_owner(path, flags).map_err(|_| error),
        _ => Err(error),
    });
    opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn open_as(path: &Path, flags: u32) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE as u32;
    OpenOptions::new()
        .read(access != libc::O_WRONLY as u32)
        .write(access != libc::O_RDONLY as u32)
        .custom_flags((flags & !ONCE & !(libc::O_ACCMODE as u32)) as i32)
        .open(path)
}

/// Of OpenZFS, which linux/magic.h does not know.
pub const ZFS_SUPER_MAGIC: FsType = FsType(0x2fc1_2fc1);

/// File systems whose files are content and nothing else (linux/magic.h, and those of ZFS, Lustre and GPFS).
const STORES: [FsType; 10] = [
    EXT4_SUPER_MAGIC,
    XFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
    TMPFS_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
    NFS_SUPER_MAGIC,
    ZFS_SUPER_MAGIC,
    FsType(0x0bd0_0bd0),
    FsType(0x4750_4653),
];

/// Whoever may give a file its mode may give it one by which it can be opened. That they may is shown by doing so, with the mode
/// that it has, which sets its time of change alone. Not of set-id files: a change of mode may lose that.
fn as_its_owner(path: &Path, flags: u32) -> io::Result<File> {
    let name = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let found = name.metadata()?;
    let is_owner = found.uid() == FsIds::of_thread().uid;
    // Files elsewhere are orders to the kernel, which may ask who has opened them.
    if !STORES.contains(&fstatfs(&name)?.filesystem_type()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if !found.is_file() || !is_owner || found.mode() & (libc::S_ISUID | libc::S_ISGID) != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let link = format!("/proc/self/fd/{}", name.as_raw_fd());
    std::fs::set_permissions(&link, found.permissions())?;
    let _as_ourselves = FsIds::current().assume()?;
    open_as(Path::new(&link), flags & !(libc::O_NOFOLLOW as u32))
}

/// Opens the file again with its flags and position.
///
/// # Errors
/// NotFound when it is gone; InvalidData when another file has its name. Whether a file that the program writes is
/// still the same is asked before all else, together with its size.
pub fn rebuild(record: &FileRecord, flags: u32, position: u64) -> io::Result<OwnedFd> {
    let mut file = open(record.path(), flags)?;
    let metadata = file.metadata()?;
    let is_read_only = flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
    // Whoever opens it may have rights to devices that the program has not (control groups); a name alone gives none.
    let is_one = metadata.is_file() || metadata.is_dir() || flags & libc::O_PATH as u32 != 0;
    if !is_one || record.directory != metadata.is_dir() || (is_read_only && !record.is_still(&metadata)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: it is another file than at the checkpoint", record.path().display()),
        ));
    }
    if flags & libc::O_PATH as u32 == 0 {
        file.seek(SeekFrom::Start(position))?;
    }
    Ok(file.into())
}

/// Opens the device node again: one of those that everybody may have, as at the checkpoint.
pub fn rebuild_device(record: &DeviceRecord, flags: u32) -> io::Result<OwnedFd> {
    let path = path_of(&record.path);
    let file = open(path, flags)?;
    if file.metadata()?.rdev() != record.number || !STATELESS.contains(&record.number) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is another device than at the checkpoint", path.display()),
        ));
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_told_apart_by_inode_or_by_size_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let record = FileRecord::of(&path, &path.metadata().unwrap());
        assert!(rebuild(&record, 0, 2).is_ok());
        // In place: the program would see it as well.
        std::fs::write(&path, "changed").unwrap();
        assert!(rebuild(&record, 0, 2).is_ok());
        std::fs::write(dir.path().join("b"), "one").unwrap();
        std::fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!(rebuild(&record, 0, 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // An image may say what it likes.
        let device = Path::new("/dev/zero");
        let named = FileRecord::of(device, &device.metadata().unwrap());
        assert!(rebuild(&named, libc::O_RDWR as u32, 0).is_err());
        let kmsg = DeviceRecord {
            path: b"/dev/kmsg".to_vec(),
            number: Path::new("/dev/kmsg").metadata().map_or(0, |m| m.rdev()),
        };
        assert!(rebuild_device(&kmsg, 0).is_err());
        let known = DeviceRecord {
            path: b"/dev/null".to_vec(),
            number: Path::new("/dev/null").metadata().unwrap().rdev(),
        };
        assert!(rebuild_device(&known, 0).is_ok());
        let moved = FileRecord { device: 1, ..FileRecord::of(&path, &path.metadata().unwrap()) };
        assert!(rebuild(&moved, 0, 2).is_ok());
        assert!(rebuild(&FileRecord { modified_ns: 1, ..moved }, 0, 2).is_err());
    }
}

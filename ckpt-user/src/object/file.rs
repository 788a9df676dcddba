//! Regular files, directories and device nodes: opened again by path, checked to be the same.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
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
        }
    }

    pub fn path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(&self.path))
    }

    pub fn is_same_inode(&self, metadata: &Metadata) -> bool {
        metadata.dev() == self.device && metadata.ino() == self.inode
    }
}

impl DeviceRecord {
    /// The record, if a restart needs nothing but to open the node again.
    pub fn of(path: &Path, metadata: &Metadata) -> Option<Self> {
        STATELESS
            .contains(&metadata.rdev())
            .then(|| Self { path: path.as_os_str().as_bytes().to_vec(), number: metadata.rdev() })
    }
}

/// Flags that open(2) acts on once and that must not act again.
const ONCE: u32 = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;

fn open(path: &Path, flags: u32) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE as u32;
    let writes = access != libc::O_RDONLY as u32;
    OpenOptions::new()
        .read(access != libc::O_WRONLY as u32)
        .write(writes)
        .custom_flags((flags & !ONCE & !(libc::O_ACCMODE as u32)) as i32)
        .open(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Opens the file again with its flags and position.
///
/// # Errors
/// NotFound when it is gone; InvalidData when another file has its name.
pub fn rebuild(record: &FileRecord, flags: u32, position: u64) -> io::Result<OwnedFd> {
    let mut file = open(record.path(), flags)?;
    if record.directory != file.metadata()?.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is no longer the same kind of file", record.path().display()),
        ));
    }
    file.seek(SeekFrom::Start(position))?;
    Ok(file.into())
}

/// Opens the device node again.
pub fn rebuild_device(record: &DeviceRecord, flags: u32) -> io::Result<OwnedFd> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&record.path));
    let file = open(path, flags)?;
    if file.metadata()?.rdev() != record.number {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is another device than at the checkpoint", path.display()),
        ));
    }
    Ok(file.into())
}

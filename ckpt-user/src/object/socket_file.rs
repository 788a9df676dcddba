//! The files that Unix sockets are bound to: a socket of the program that was killed makes place for its successor, and
//! nothing else does.

use super::{ports, reach};
use crate::sys::ids::FsIds;
use crate::sys::socket;
use nix::unistd::Pid;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The file that a Unix socket is bound to.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SocketFile {
    /// Where its path begins, if that is relative.
    #[prost(bytes = "vec", tag = "1")]
    pub directory: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub device: u64,
    #[prost(uint64, tag = "3")]
    pub inode: u64,
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    #[prost(uint32, tag = "6")]
    pub gid: u32,
}

/// The file that a socket of process `pid` is bound to, whose name is `given`; `cwd` is where the program is now.
pub fn capture(fd: &OwnedFd, given: &Path, cwd: Option<PathBuf>, pid: Pid) -> Result<SocketFile, String> {
    let opened = socket::bound_file(fd).map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => "only root may ask for its file (CAP_NET_ADMIN)".to_owned(),
        _ => format!("its file cannot be found: {e}"),
    })?;
    let path =
        std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(|e| e.to_string())?;
    let metadata = File::from(opened).metadata().map_err(|e| e.to_string())?;
    // Of a relative name: where the program was when it was bound, as far as that can be told.
    let begins = if given.is_absolute() { [Some(PathBuf::new()), None] } else { [before(&path, given), cwd] };
    let leads =
        |directory: &PathBuf| reach::leads_to(&directory.join(given), &metadata, pid).unwrap_or(false);
    let directory = begins.into_iter().flatten().find(leads).ok_or(
        "its name in the file system has been removed, is another file's, or begins in a directory that is not known",
    )?;
    Ok(SocketFile {
        directory: directory.as_os_str().as_bytes().to_vec(),
        device: metadata.dev(),
        inode: metadata.ino(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// What is before `given` in `path`.
fn before(path: &Path, given: &Path) -> Option<PathBuf> {
    let given: PathBuf = given.components().filter(|part| *part != Component::CurDir).collect();
    let rest = path.ends_with(&given).then(|| path.ancestors().nth(given.components().count()))?;
    rest.map(Path::to_path_buf)
}

/// What is where its file is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Free,
    /// A socket that nobody has any more.
    Stale,
}

/// Looks where the file is to be, and changes nothing.
///
/// # Errors
/// Somebody else has the place.
pub fn look(path: &Path) -> io::Result<Place> {
    let refused = |kind: io::ErrorKind, what: &str| {
        Err(io::Error::new(kind, format!("{}: the program had a socket there, and {what}", path.display())))
    };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => {
            return Ok(Place::Free);
        }
        Err(e) => return refused(e.kind(), &e.to_string()),
    };
    if metadata.mode() & libc::S_IFMT != libc::S_IFSOCK {
        return refused(io::ErrorKind::AlreadyExists, "what is there now is none");
    }
    let (device, inode) = (metadata.dev(), metadata.ino());
    // A datagram socket can be refused, or be of another kind than what is there; it disturbs nobody.
    let probe = socket::create(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    match connect(&probe, path) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(Place::Stale),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            refused(e.kind(), "may not be asked who has it")
        }
        _ => {
            let who = ports::holder_of_file(path, device, inode);
            let what = format!("{} has it now", who.as_deref().unwrap_or("somebody"));
            refused(io::ErrorKind::AddrInUse, &what)
        }
    }
}

/// However long the path is: by a link of /proc to it.
fn connect(fd: &OwnedFd, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let address = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], link.as_bytes(), &[0]].concat();
    socket::connect(fd, &address)
}

/// Files that were not there before, by path, device and inode: without [`Names::keep`] they are removed again.
pub struct Names {
    made: Vec<(PathBuf, u64, u64)>,
    /// With whose rights files are made and removed.
    pub owner: FsIds,
}

impl Names {
    pub fn of(owner: &FsIds) -> Self {
        Self { made: Vec::new(), owner: owner.clone() }
    }

    /// Of a file that was made where none was.
    pub fn note(&mut self, path: PathBuf, made: &Metadata) {
        self.made.push((path, made.dev(), made.ino()));
    }

    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _as_owner = self.owner.assume();
        for (path, device, inode) in &self.made {
            // Somebody else's is left alone; who had ours removed has done our work.
            if std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (*device, *inode)) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

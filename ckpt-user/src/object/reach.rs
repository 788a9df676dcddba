//! What root may not reach. A file system that takes no word of root's (NFS and Lustre with root_squash) opens what is closed to
//! others to its user alone: so what is refused is tried again with the rights of a process that has the file.

use crate::sys::ids::FsIds;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// Those by which files are judged for a process.
fn ids_of(pid: Pid) -> io::Result<FsIds> {
    let status = ProcDir::process(pid).status()?;
    let of_files = |name: &str| {
        let ids = status.numbers(name)?;
        ids.get(3).copied().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    Ok(FsIds { uid: of_files("Uid")?, gid: of_files("Gid")?, groups: status.numbers("Groups")? })
}

/// Does something at files with our own rights and, where those do not suffice, with those of process `pid`.
///
/// # Errors
/// Of the last try.
pub fn with_rights_of<T>(pid: Pid, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let error = match act() {
        Err(error) if is_refused(&error) => error,
        done => return done,
    };
    let Ok(_as_the_process) = ids_of(pid).and_then(|ids| ids.assume()) else { return Err(error) };
    act()
}

/// Whether `path` still leads to the very file, which process `pid` has.
///
/// # Errors
/// In words: nobody may look.
pub fn leads_to(path: &Path, metadata: &Metadata, pid: Pid) -> Result<bool, String> {
    match with_rights_of(pid, || std::fs::symlink_metadata(path)) {
        Ok(found) => Ok((found.dev(), found.ino()) == (metadata.dev(), metadata.ino())),
        Err(error) if is_refused(&error) => Err(format!(
            "whether it still has its name is not to be known ({error}, for ckptbpf and for the program's user): the directory \
             that it is in, or one above, is closed to both"
        )),
        Err(_) => Ok(false),
    }
}

/// Opens, to be read, what a link of process `pid` below /proc leads to.
///
/// # Errors
/// As of opening the link with our own rights.
pub fn open(link: &Path, pid: Pid) -> io::Result<File> {
    let error = match File::open(link) {
        Err(error) if is_refused(&error) => error,
        opened => return opened,
    };
    // The link may be ours alone to follow, and what it leads to the process's alone to open.
    let name = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(link);
    let (Ok(name), Ok(_as_the_process)) = (name, ids_of(pid).and_then(|ids| ids.assume())) else {
        return Err(error);
    };
    File::open(format!("/proc/self/fd/{}", name.as_raw_fd())).map_err(|_| error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn what_root_is_refused_is_tried_with_the_rights_of_the_process() {
        if crate::skipped::without_root() {
            return;
        }
        let mut child = Command::new("sleep").arg("60").uid(1234).gid(1235).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let tries = Cell::new(0);
        let as_whom = |fails_with: Option<i32>| {
            tries.set(0);
            with_rights_of(pid, || {
                tries.set(tries.get() + 1);
                let uid = FsIds::of_thread().uid;
                match fails_with {
                    Some(error) if uid == 0 => Err(io::Error::from_raw_os_error(error)),
                    _ => Ok(uid),
                }
            })
        };
        let found = [None, Some(libc::EACCES), Some(libc::EPERM), Some(libc::ENOENT)].map(as_whom);
        child.kill().unwrap();
        child.wait().unwrap();
        let uids: Vec<Option<u32>> = found.into_iter().map(Result::ok).collect();
        assert_eq!(uids, [Some(0), Some(1234), Some(1234), None]);
        assert_eq!((tries.get(), FsIds::of_thread().uid), (1, 0));
    }

    #[test]
    fn a_name_leads_to_its_file_until_that_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(leads_to(&path, &metadata, Pid::this()), Ok(true));
        std::fs::write(dir.path().join("b"), "two").unwrap();
        std::fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!(leads_to(&path, &metadata, Pid::this()), Ok(false));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(leads_to(&path, &metadata, Pid::this()), Ok(false));
    }
}

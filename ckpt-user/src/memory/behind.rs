//! What stands behind a mapping of a file: its link in /proc/PID/map_files leads to it.
//!
//! That takes CAP_CHECKPOINT_RESTORE outside of all user namespaces (fs/proc/base.c, `proc_map_files_get_link`). For who has not
//! got it, a file is looked for by the name that maps shows, and has to be the very one that maps shows by device and inode; or
//! among the files that the process has open; or, of a tmpfs, among all that have names. Of what has neither, shared memory alone is
//! found then, where a daemon opens it ([`crate::daemon::object`]), or through its mappings ([`super::through`]).

use super::tmpfs::{self, Found};
use super::vma::{self, Raw};
use crate::daemon::told;
use crate::sys::shared::Mapped;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How maps shows shared memory of mmap(2) with MAP_ANONYMOUS.
pub const ANONYMOUS: &str = "/dev/zero (deleted)";

/// Whether it is shared memory of mmap(2) with MAP_ANONYMOUS, or of memfd_create(2), by its name in maps. What else lies on the same
/// file system has other names: memory of System V, to which not everybody may write who may read it.
pub fn is_without_a_name(raw: &Raw) -> bool {
    let is_named = |name: &str| raw.name.starts_with(name);
    raw.is_shared() && (raw.name == ANONYMOUS || is_named(MEMFD) || is_named("[anon_shmem:"))
}

/// How the names of memory of memfd_create(2) begin.
pub const MEMFD: &str = "/memfd:";

/// The file or object behind a mapping.
#[derive(Debug)]
pub struct Behind {
    /// A process that has it.
    pub pid: Pid,
    /// Leads to it.
    pub link: PathBuf,
    /// Its name, as the kernel shows it.
    pub target: PathBuf,
    pub metadata: Metadata,
    /// What the link is of, where it is one of our own.
    _opened: Option<File>,
}

impl Behind {
    /// The inner error is the reason why it is not found.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn of(pid: Pid, raw: &Raw) -> io::Result<Result<Self, String>> {
        let link = ProcDir::process(pid).path(format!("map_files/{:x}-{:x}", raw.start, raw.end));
        match std::fs::metadata(&link) {
            Ok(metadata) => Ok(Ok(Self::at(pid, link.clone(), std::fs::read_link(&link)?, metadata))),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let why = match Self::by_name(pid, raw) {
                    Err(why) => why,
                    found => return Ok(found),
                };
                if let Some(found) = Self::by_descriptor(pid, raw)?.or_else(|| Self::by_other_name(pid, raw))
                {
                    return Ok(Ok(found));
                }
                Ok(match Self::by_daemon(pid, raw) {
                    Ok(found) => found.ok_or(why),
                    Err(error) => Err(format!("{why}; the daemon does not open it ({error})")),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// At a place that leads there by itself.
    pub fn at(pid: Pid, link: PathBuf, target: PathBuf, metadata: Metadata) -> Self {
        Self { pid, link, target, metadata, _opened: None }
    }

    /// Shared memory without a name, where there is a daemon that opens it for us.
    fn by_daemon(pid: Pid, raw: &Raw) -> io::Result<Option<Self>> {
        if !is_without_a_name(raw) {
            return Ok(None);
        }
        let Some(opened) = told::object(pid, raw.start..raw.end)? else { return Ok(None) };
        let link = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let (target, metadata) = (std::fs::read_link(&link)?, opened.metadata()?);
        Ok(Some(Self { pid, link, target, metadata, _opened: Some(opened) }))
    }

    /// A file that the process has open, too. Nobody has shared memory of mmap(2) open.
    fn by_descriptor(pid: Pid, raw: &Raw) -> io::Result<Option<Self>> {
        if raw.name == ANONYMOUS {
            return Ok(None);
        }
        let dir = ProcDir::process(pid);
        for number in dir.numbers("fd")? {
            let link = dir.path(format!("fd/{number}"));
            // What is on a file system that does not answer any more is not looked for.
            let Ok(metadata) = std::fs::metadata(&link) else { continue };
            if !metadata.is_file() || (metadata.dev(), metadata.ino()) != (raw.device, raw.inode) {
                continue;
            }
            let target = std::fs::read_link(&link)?;
            // Others may have the same numbers: memory of System V, and all that is of no file system.
            if target == Path::new(&raw.name) {
                return Ok(Some(Self::at(pid, link, target, metadata)));
            }
        }
        Ok(None)
    }

    /// A file of a tmpfs that has lost the name that maps shows, and has another one.
    fn by_other_name(pid: Pid, raw: &Raw) -> Option<Self> {
        match tmpfs::look(raw)? {
            Found::Named(path, metadata) => Some(Self::at(pid, path.clone(), path, metadata)),
            Found::Nameless(_) => None,
        }
    }

    fn by_name(pid: Pid, raw: &Raw) -> Result<Self, String> {
        let path = PathBuf::from(&raw.name);
        let found = if path.is_absolute() { std::fs::symlink_metadata(&path).ok() } else { None };
        match found.filter(|found| is_shown_as(&path, found, raw)) {
            Some(metadata) => Ok(Self::at(pid, path.clone(), path, metadata)),
            None => Err("it is of no file that has this name, and only root (CAP_CHECKPOINT_RESTORE) may look behind it"
                .to_owned()),
        }
    }
}

/// Whether maps shows this file as `raw`. The device that it shows is not always that of stat(2) (btrfs, overlayfs): then it is
/// asked how it shows the file to us.
fn is_shown_as(path: &Path, found: &Metadata, raw: &Raw) -> bool {
    let shown = || -> io::Result<(u64, u64)> {
        let mapped = Mapped::beginning(&File::open(path)?)?;
        let own = vma::parse(&ProcDir::process(Pid::this()).text("maps")?)?;
        let raw = own.iter().find(|raw| raw.start == mapped.address());
        raw.map(|raw| (raw.device, raw.inode)).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let wanted = (raw.device, raw.inode);
    (found.dev(), found.ino()) == wanted || (found.is_file() && shown().is_ok_and(|shown| shown == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::memfd;
    use nix::sys::memfd::MFdFlags;

    /// How maps shows our own executable.
    fn own() -> Raw {
        let maps = vma::parse(&std::fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
        maps.into_iter().find(|raw| raw.is_file() && raw.name.starts_with('/')).unwrap()
    }

    #[test]
    fn shared_memory_without_a_name_is_told_from_other_memory() {
        let is_such = |permissions: &str, name: &str| {
            let line = format!("1000-2000 {permissions} 00000000 00:01 7 {name}\n");
            is_without_a_name(&vma::parse(&line).unwrap()[0])
        };
        for name in [ANONYMOUS, "/memfd:x (deleted)", "[anon_shmem:queue]"] {
            assert!(is_such("rw-s", name) && !is_such("rw-p", name), "{name}");
        }
        for name in ["/SYSV00000000 (deleted)", "/i915 (deleted)", "/dev/zero", "/dev/shm/file", "[anon:x]"] {
            assert!(!is_such("rw-s", name), "{name}");
        }
    }

    #[test]
    fn a_file_without_a_name_is_found_by_a_descriptor() {
        let file = memfd::own(c"ckptbpf", MFdFlags::empty()).unwrap();
        file.set_len(4096).unwrap();
        let mapped = Mapped::of(&file).unwrap();
        let find = || {
            let maps = vma::parse(&std::fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
            let raw = maps.into_iter().find(|raw| raw.start == mapped.address()).unwrap();
            Behind::by_descriptor(Pid::this(), &raw).unwrap()
        };
        let found = find().unwrap();
        assert_eq!(found.metadata.ino(), file.metadata().unwrap().ino());
        assert!(found.target.starts_with("/memfd:ckptbpf (deleted)"), "{found:?}");
        drop(file);
        assert!(find().is_none());
    }

    #[test]
    fn a_file_is_found_by_its_name_if_it_is_that_very_file() {
        let raw = own();
        let by_link = Behind::of(Pid::this(), &raw).unwrap().unwrap();
        let by_name = Behind::by_name(Pid::this(), &raw).unwrap();
        assert_eq!(by_name.target, by_link.target);
        assert_eq!(by_name.metadata.ino(), by_link.metadata.ino());
        for other in [
            Raw { inode: raw.inode + 1, ..raw.clone() },
            Raw { device: raw.device + 1, ..raw.clone() },
            Raw { name: format!("{} (deleted)", raw.name), ..raw.clone() },
            Raw { name: "/dev/zero (deleted)".to_owned(), ..raw },
        ] {
            assert!(Behind::by_name(Pid::this(), &other).is_err(), "{other:?}");
        }
    }
}

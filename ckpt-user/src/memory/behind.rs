//! What stands behind a mapping of a file: its link in /proc/PID/map_files leads to it.
//!
//! That takes CAP_CHECKPOINT_RESTORE outside of all user namespaces (fs/proc/base.c, `proc_map_files_get_link`). For who has not
//! got it, a file is looked for by the name that maps shows, and has to be the very one that maps shows by device and inode.
//! Nothing that has no name is found then.

use super::vma::{self, Raw};
use crate::sys::shared::Mapped;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
}

impl Behind {
    /// The inner error is the reason why it is not found.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn of(pid: Pid, raw: &Raw) -> io::Result<Result<Self, String>> {
        let link = ProcDir::process(pid).path(format!("map_files/{:x}-{:x}", raw.start, raw.end));
        match std::fs::metadata(&link) {
            Ok(metadata) => Ok(Ok(Self { pid, target: std::fs::read_link(&link)?, link, metadata })),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Self::by_name(pid, raw)),
            Err(error) => Err(error),
        }
    }

    fn by_name(pid: Pid, raw: &Raw) -> Result<Self, String> {
        let path = PathBuf::from(&raw.name);
        let found = if path.is_absolute() { std::fs::symlink_metadata(&path).ok() } else { None };
        match found.filter(|found| is_shown_as(&path, found, raw)) {
            Some(metadata) => Ok(Self { pid, link: path.clone(), target: path, metadata }),
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

    /// How maps shows our own executable.
    fn own() -> Raw {
        let maps = vma::parse(&std::fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
        maps.into_iter().find(|raw| raw.is_file() && raw.name.starts_with('/')).unwrap()
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

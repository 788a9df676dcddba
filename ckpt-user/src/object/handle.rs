//! What tells a file from another one that has its path and its inode number.
//!
//! File systems without a disk of their own (NFS, BeeGFS, overlayfs), and those of several parts (btrfs, ZFS), get the number of
//! their device (st_dev) when they are mounted, with 0 for its major part. On another node, and after another mount or a reboot, the
//! same file is on a device of another number, and another file may be on one of the number that it had.
//!
//! ```text
//!                                   ┌ device as it was ─▶ it is the file, unless its handle says that it was replaced
//!  path and inode number as they ───┤
//!  were                             └ another one ─▶ handles, or times of birth, are alike and are kept there: it is the file
//! ```

use crate::sys::file_handle;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// By what a file system knows a file, and when that was made.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FileHandle {
    /// As name_to_handle_at(2) gives it.
    #[prost(sint32, tag = "1")]
    pub kind: i32,
    /// Of none where there is none.
    #[prost(bytes = "vec", tag = "2")]
    pub bytes: Vec<u8>,
    /// Unix time in ns, where the file system tells it (STATX_BTIME).
    #[prost(int64, optional, tag = "3")]
    pub born_ns: Option<i64>,
}

/// Handles of overlayfs (OVL_FILEID_V0 and OVL_FILEID_V1 of fs/overlayfs/overlayfs.h).
const OF_AN_OVERLAY: [i32; 2] = [0xfb, 0xf8];

/// Whether that is a number that a mount has been given, not one of a disk.
pub fn is_of_a_mount(device: u64) -> bool {
    libc::major(device) == 0
}

impl FileHandle {
    /// Of the file that `link` leads to, where the number of its device says little. What cannot be found out costs nobody a
    /// checkpoint.
    pub fn of(link: &Path, metadata: &Metadata) -> Option<Self> {
        if !is_of_a_mount(metadata.dev()) || !metadata.is_file() {
            return None;
        }
        let (kind, bytes) = given(link).unwrap_or_default();
        let born = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let born_ns = born.and_then(|at| i64::try_from(at.as_nanos()).ok()).filter(|ns| *ns != 0);
        (!bytes.is_empty() || born_ns.is_some()).then_some(Self { kind, bytes, born_ns })
    }
}

fn given(link: &Path) -> io::Result<(i32, Vec<u8>)> {
    match file_handle::of(link, 0) {
        // Of others than overlayfs, one that is only to be compared may hold no more than the inode number.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let found = file_handle::of(link, file_handle::TO_COMPARE)?;
            if OF_AN_OVERLAY.contains(&found.0) { Ok(found) } else { Err(error) }
        }
        found => found,
    }
}

/// Where the files of a file system keep what tells them apart, however it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// It is one and the same for all machines.
    Everywhere,
    /// On this machine. A copy of it, as the disks of nodes that were set up from one image are, has others' files under the same
    /// handles.
    Here,
    Nowhere,
}

/// How long a file has the same handle, which no other file of its file system has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasting {
    ForLife,
    /// Until it is copied up, by being opened to be written.
    UntilItIsWritten,
    /// Not known; or it holds no more than the inode number.
    Unknown,
}

/// By their names in mountinfo.
const SYSTEMS: [(&str, Kept, Lasting); 12] = [
    ("nfs", Kept::Everywhere, Lasting::ForLife),
    ("nfs4", Kept::Everywhere, Lasting::ForLife),
    ("beegfs", Kept::Everywhere, Lasting::ForLife),
    ("ceph", Kept::Everywhere, Lasting::Unknown),
    ("cifs", Kept::Everywhere, Lasting::Unknown),
    ("smb3", Kept::Everywhere, Lasting::Unknown),
    ("gpfs", Kept::Everywhere, Lasting::Unknown),
    ("btrfs", Kept::Here, Lasting::ForLife),
    ("bcachefs", Kept::Here, Lasting::ForLife),
    ("zfs", Kept::Here, Lasting::ForLife),
    ("overlay", Kept::Here, Lasting::UntilItIsWritten),
    ("tmpfs", Kept::Nowhere, Lasting::ForLife),
];

/// Where a file is now, beside where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub same_device: bool,
    pub same_machine: bool,
}

/// Whether two files with one path and one inode number are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Same,
    Another,
    /// Nothing tells.
    Unknown,
}

/// Compares what is known of a file at the checkpoint and of one that is there `now`, on a file system of the kind `system`.
pub fn judge(then: Option<&FileHandle>, now: Option<&FileHandle>, system: &str, place: Place) -> Verdict {
    let known = SYSTEMS.iter().find(|(name, ..)| *name == system);
    let (kept, lasting) =
        known.map_or((Kept::Nowhere, Lasting::Unknown), |(_, kept, lasting)| (*kept, *lasting));
    let both = then.zip(now);
    let has_handles =
        |(then, now): &(&FileHandle, &FileHandle)| !then.bytes.is_empty() && !now.bytes.is_empty();
    let by_handle = both.filter(|both| lasting != Lasting::Unknown && has_handles(both));
    let by_handle = by_handle.map(|(then, now)| (then.kind, &then.bytes) == (now.kind, &now.bytes));
    if place.same_device {
        let is_replaced = lasting == Lasting::ForLife && by_handle == Some(false);
        return if is_replaced { Verdict::Another } else { Verdict::Same };
    }
    let by_birth = || both.and_then(|(then, now)| Some(then.born_ns? == now.born_ns?));
    let is_kept = kept == Kept::Everywhere || (kept == Kept::Here && place.same_machine);
    match by_handle.or_else(by_birth) {
        Some(true) if is_kept => Verdict::Same,
        Some(false) => Verdict::Another,
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8], born_ns: Option<i64>) -> FileHandle {
        FileHandle { kind: 1, bytes: bytes.to_vec(), born_ns }
    }

    const ELSEWHERE: Place = Place { same_device: false, same_machine: false };
    const MOUNTED_ANEW: Place = Place { same_device: false, same_machine: true };
    const THERE: Place = Place { same_device: true, same_machine: true };

    #[test]
    fn only_what_a_file_system_keeps_makes_one_file_of_two() {
        let (one, other) = (file(b"one", Some(5)), file(b"two", Some(5)));
        let born = |ns| file(b"", Some(ns));
        let ask =
            |then: &FileHandle, now: &FileHandle, system, place| judge(Some(then), Some(now), system, place);
        for system in ["nfs", "nfs4", "beegfs"] {
            assert_eq!(ask(&one, &one, system, ELSEWHERE), Verdict::Same, "{system}");
            // Time of birth counts for nothing beside that.
            assert_eq!(ask(&one, &other, system, ELSEWHERE), Verdict::Another, "{system}");
            assert_eq!(ask(&one, &born(5), system, ELSEWHERE), Verdict::Same, "{system}");
            assert_eq!(ask(&one, &file(b"", None), system, ELSEWHERE), Verdict::Unknown, "{system}");
        }
        for system in ["btrfs", "zfs", "overlay"] {
            assert_eq!(ask(&one, &one, system, MOUNTED_ANEW), Verdict::Same, "{system}");
            assert_eq!(ask(&one, &one, system, ELSEWHERE), Verdict::Unknown, "a copy of its disk, {system}");
            assert_eq!(ask(&one, &other, system, MOUNTED_ANEW), Verdict::Another, "{system}");
            assert_eq!(ask(&born(5), &born(6), system, MOUNTED_ANEW), Verdict::Another, "{system}");
        }
        // A handle that holds no more than the inode number tells nothing.
        assert_eq!(ask(&file(b"one", None), &file(b"one", None), "ceph", ELSEWHERE), Verdict::Unknown);
        assert_eq!(ask(&one, &other, "ceph", ELSEWHERE), Verdict::Same);
        assert_eq!(ask(&born(5), &born(6), "cifs", ELSEWHERE), Verdict::Another);
        // Of a server in user space each mount counts its files anew; memory has others.
        for system in ["fuse.sshfs", "tmpfs", "9p", "ext4", ""] {
            assert_eq!(ask(&one, &one, system, MOUNTED_ANEW), Verdict::Unknown, "{system}");
        }
        assert_eq!(judge(None, Some(&one), "nfs", ELSEWHERE), Verdict::Unknown);
        assert_eq!(judge(Some(&one), None, "nfs", ELSEWHERE), Verdict::Unknown);
    }

    #[test]
    fn a_file_that_was_replaced_on_its_device_shows_where_handles_last() {
        let (one, other) = (file(b"one", Some(5)), file(b"two", Some(6)));
        for (system, verdict) in [
            ("nfs", Verdict::Another),
            ("tmpfs", Verdict::Another),
            ("btrfs", Verdict::Another),
            // It has been copied up, or its server has forgotten it meanwhile.
            ("overlay", Verdict::Same),
            ("fuse.sshfs", Verdict::Same),
            ("ceph", Verdict::Same),
        ] {
            assert_eq!(judge(Some(&one), Some(&other), system, THERE), verdict, "{system}");
            assert_eq!(judge(Some(&one), Some(&one), system, THERE), Verdict::Same, "{system}");
            assert_eq!(judge(None, Some(&one), system, THERE), Verdict::Same, "{system}");
        }
    }

    #[test]
    fn a_file_in_memory_has_a_handle_and_one_of_a_disk_needs_none() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = shm.path().join("a");
        std::fs::write(&path, "x").unwrap();
        let metadata = path.metadata().unwrap();
        if is_of_a_mount(metadata.dev()) {
            let own = FileHandle::of(&path, &metadata);
            assert_eq!(own, FileHandle::of(&path, &metadata));
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, "x").unwrap();
            assert!(own.is_none() || own != FileHandle::of(&path, &path.metadata().unwrap()));
        }
        assert_eq!(FileHandle::of(shm.path(), &shm.path().metadata().unwrap()), None, "a directory");
    }
}

//! Open files without a name: deleted ones, and those of O_TMPFILE. The image holds their content.
//!
//! Content is in the page store, under a space of its own: read through the file, each page compared by hash with what
//! the last generation holds. A restart makes a file without a name in the directory where the old one was, or in /tmp
//! where that directory is gone or cannot be written.

use super::{Object, Seen, path_of, reach};
use crate::image::{Chain, Source, SpaceId};
use crate::sys::ids;
use crate::task::mounts;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, FsType, HUGETLBFS_MAGIC, NFS_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A regular file without a name; records with the same device and inode are of one file.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct DeletedRecord {
    /// The directory it was in.
    #[prost(bytes = "vec", tag = "1")]
    pub directory: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub device: u64,
    #[prost(uint64, tag = "3")]
    pub inode: u64,
    /// Bytes.
    #[prost(uint64, tag = "4")]
    pub size: u64,
    /// Permissions, and the set-id and sticky bits.
    #[prost(uint32, tag = "5")]
    pub mode: u32,
    #[prost(uint32, tag = "6")]
    pub uid: u32,
    #[prost(uint32, tag = "7")]
    pub gid: u32,
    /// The space its content is stored under.
    #[prost(uint32, tag = "8")]
    pub space: u32,
    #[prost(int64, tag = "9")]
    pub accessed_ns: i64,
    #[prost(int64, tag = "10")]
    pub modified_ns: i64,
    /// All of it has its place there, also where nothing was written (fallocate(2)).
    #[prost(bool, tag = "11")]
    pub allocated: bool,
}

/// MQUEUE_MAGIC (ipc/mqueue.c).
const MESSAGE_QUEUES: FsType = FsType(0x1980_0202);

/// What /proc puts behind the path of a file that has lost its name there.
const GONE: &[u8] = b" (deleted)";

/// Names that are looked at for another one of a file that has lost its own.
const NAMES: usize = 4096;

impl DeletedRecord {
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Pages that hold its content.
    pub fn pages(&self) -> std::ops::Range<u64> {
        0..self.size.div_ceil(4096)
    }
}

/// The path that it had, if it has lost that.
pub fn former(target: &Path) -> Option<&Path> {
    let bytes = target.as_os_str().as_bytes().strip_suffix(GONE)?;
    Some(Path::new(OsStr::from_bytes(bytes)))
}

/// Whether that is the name under which a file that was removed is hidden until nobody has it open any more: by an NFS client
/// (nfs_sillyrename() of fs/nfs/unlink.c), or by libfuse. With the program, it goes.
pub fn is_hidden(target: &Path, link: &Path) -> bool {
    let Some(of) = hidden_by(target) else { return false };
    statfs(link).is_ok_and(|found| found.filesystem_type() == of)
}

fn hidden_by(target: &Path) -> Option<FsType> {
    let name = target.file_name()?.as_bytes();
    let is_number = |digits: &[u8], count| digits.len() == count && digits.iter().all(u8::is_ascii_hexdigit);
    let is = |prefix: &[u8], count| name.strip_prefix(prefix).is_some_and(|digits| is_number(digits, count));
    match () {
        () if is(b".nfs", 24) => Some(NFS_SUPER_MAGIC),
        () if is(b".fuse_hidden", 16) => Some(FUSE_SUPER_MAGIC),
        () => None,
    }
}

/// # Errors
/// The reason why it cannot be saved.
pub fn capture(seen: &Seen, former: &Path, metadata: &Metadata) -> Result<Object, String> {
    if former.as_os_str().as_bytes().starts_with(b"/memfd:") {
        return Err("memory of memfd_create(2) cannot be saved yet".to_owned());
    }
    if metadata.is_dir() {
        return Err("the directory has been removed".to_owned());
    }
    of(&seen.link(), former, metadata).map(Object::Deleted)
}

/// Whether it was in a directory, and is no memory that only looks like a file.
pub fn is_on_a_mount(former: &Path, metadata: &Metadata) -> bool {
    let in_its_directory =
        former.parent().and_then(|d| d.metadata().ok()).is_some_and(|d| d.dev() == metadata.dev());
    let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    in_its_directory || mounts::ours().is_ok_and(|all| all.iter().any(|mount| mount.device == device))
}

/// The record of the file behind the magic link `link`.
///
/// # Errors
/// The reason why it cannot be saved.
pub fn of(link: &Path, former: &Path, metadata: &Metadata) -> Result<DeletedRecord, String> {
    // What looks like a file there is something else: a message queue, memory in huge pages.
    let kind = statfs(link).map_err(|e| e.to_string())?.filesystem_type();
    if [MESSAGE_QUEUES, HUGETLBFS_MAGIC].contains(&kind) {
        return Err("this kind of descriptor cannot be saved yet".to_owned());
    }
    let directory = former.parent().unwrap_or(Path::new("/"));
    let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
    Ok(DeletedRecord {
        directory: directory.as_os_str().as_bytes().to_vec(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: ids::recorded(metadata.uid()),
        gid: ids::recorded(metadata.gid()),
        space: 0,
        accessed_ns: ns(metadata.atime(), metadata.atime_nsec()),
        modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        allocated: metadata.blocks() >= metadata.size().div_ceil(512),
    })
}

/// The record of a file of which nothing is known but its `identity`, and the path that it had: its size is to be told.
pub fn unseen(identity: (u64, u64), former: &Path) -> DeletedRecord {
    let directory = former.parent().unwrap_or(Path::new("/")).as_os_str().as_bytes().to_vec();
    let (device, inode) = identity;
    let (uid, gid) = (ids::UNKNOWN, ids::UNKNOWN);
    DeletedRecord { directory, device, inode, mode: 0o600, uid, gid, ..DeletedRecord::default() }
}

/// Another name of a file that has lost the one it was opened by: a hard link in the same directory. `pid` has the file.
///
/// # Errors
/// The reason why it was not found.
pub fn other_name(former: &Path, metadata: &Metadata, pid: Pid) -> Result<PathBuf, String> {
    let nowhere = || format!("it has lost its name, and no other one of its {} is known", metadata.nlink());
    let directory = former.parent().ok_or_else(nowhere)?;
    let names = reach::with_rights_of(pid, || std::fs::read_dir(directory));
    let names = names.map_err(|e| format!("{}: {e}", directory.display()))?;
    let same = |path: &PathBuf| reach::leads_to(path, metadata, pid).unwrap_or(false);
    names.flatten().take(NAMES).map(|entry| entry.path()).find(same).ok_or_else(nowhere)
}

/// The files of one restart, by identity.
pub struct Files<'a> {
    pub chain: &'a Chain,
    made: HashMap<(u64, u64), File>,
    /// Those of them that have neither owner, mode nor times yet: they may be open for more than their modes allow.
    unfinished: Vec<(DeletedRecord, File)>,
}

impl<'a> Files<'a> {
    pub fn new(chain: &'a Chain) -> Self {
        Self { chain, made: HashMap::new(), unfinished: Vec::new() }
    }

    /// A file that was made elsewhere: what is shared memory, too.
    pub fn adopt(&mut self, identity: (u64, u64), file: File) {
        self.made.insert(identity, file);
    }

    /// A description of its own; the first call for a file makes and fills it.
    pub fn rebuild(&mut self, record: &DeletedRecord, flags: u32, position: u64) -> io::Result<OwnedFd> {
        const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_TMPFILE | libc::O_NOFOLLOW;
        let file = match self.made.entry(record.identity()) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(new) => {
                let file = create(record)?;
                let again = fill(record, &file, self.chain).and_then(|()| file.try_clone());
                self.unfinished.push((record.clone(), again.map_err(named(record))?));
                new.insert(file)
            }
        };
        let access = flags as i32 & libc::O_ACCMODE;
        // Opening by this magic link makes a new description of the same file. O_DIRECTORY is part of O_TMPFILE.
        let mut again = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(flags as i32 & !(ONCE | libc::O_ACCMODE))
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if flags & libc::O_PATH as u32 == 0 {
            again.seek(SeekFrom::Start(position))?;
        }
        Ok(again.into())
    }

    /// When all of them are open.
    pub fn finish(&self) -> io::Result<()> {
        self.unfinished.iter().try_for_each(|(record, file)| finish(record, file).map_err(named(record)))
    }
}

fn named(record: &DeletedRecord) -> impl Fn(io::Error) -> io::Error {
    let directory = path_of(&record.directory).display();
    move |e| io::Error::new(e.kind(), format!("a file that was deleted from {directory}: {e}"))
}

/// Makes it again where it was: empty, but of its size.
pub fn create(record: &DeletedRecord) -> io::Result<File> {
    let made = unnamed(path_of(&record.directory)).or_else(|_| unnamed(Path::new("/tmp")));
    made.and_then(|file| file.set_len(record.size).map(|()| file)).map_err(named(record))
}

/// A file without a name in `directory`, also where the file system has no O_TMPFILE.
pub fn unnamed(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.custom_flags(libc::O_TMPFILE).open(directory) {
        Err(e) if [Some(libc::EOPNOTSUPP), Some(libc::EISDIR)].contains(&e.raw_os_error()) => {}
        done => return done,
    }
    let path = directory.join(format!(".ckptbpf-{}", std::process::id()));
    let file = options.custom_flags(libc::O_NOFOLLOW).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Its content. Its size is what it was.
pub fn fill(record: &DeletedRecord, file: &File, chain: &Chain) -> io::Result<()> {
    /// Pages read at a time.
    const BATCH: u64 = 256;
    let mut reader = chain.reader();
    let mut buffer = vec![0; BATCH as usize * 4096];
    let pages = record.pages();
    for run in chain.pages(SpaceId(record.space)).iter_range(pages.start, pages.end) {
        if !matches!(run.source, Source::Stored { .. }) {
            continue;
        }
        let all = run.pages();
        for at in all.clone().step_by(BATCH as usize) {
            let Some(part) = run.clip(&(at..(at + BATCH).min(all.end))) else { continue };
            let bytes = &mut buffer[..part.count as usize * 4096];
            reader.read_run(&part, bytes).map_err(io::Error::other)?;
            file.write_all_at(bytes, part.first_page * 4096)?;
        }
    }
    // The last page may be partly there.
    file.set_len(record.size)
}

/// Owner, mode and times, when nothing is written to it any more.
pub fn finish(record: &DeletedRecord, file: &File) -> io::Result<()> {
    let made = file.metadata()?;
    if let Some((user, group)) = ids::owners_to_give((record.uid, record.gid), (made.uid(), made.gid())) {
        std::os::unix::fs::fchown(file, user, group)?;
    }
    file.set_permissions(Permissions::from_mode(record.mode))?;
    let time =
        |ns: i64| nix::sys::time::TimeSpec::from_duration(std::time::Duration::from_nanos(ns.max(0) as u64));
    Ok(nix::sys::stat::futimens(file, &time(record.accessed_ns), &time(record.modified_ns))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_name_is_made_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = unnamed(dir.path()).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn names_of_what_is_hidden_until_it_is_closed() {
        let of = |name: &str| hidden_by(&Path::new("/d").join(name));
        assert_eq!(of(".nfs000000000123abcd00000007"), Some(NFS_SUPER_MAGIC));
        assert_eq!(of(".fuse_hidden0000000a00000001"), Some(FUSE_SUPER_MAGIC));
        for name in
            [".nfs", ".nfs000000000123abcd0000000", ".nfs000000000123abcd0000000x", ".fuse_hidden1", "nfs"]
        {
            assert_eq!(of(name), None, "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".nfs000000000123abcd00000007");
        std::fs::write(&path, "here it is a name like any other").unwrap();
        assert!(!is_hidden(&path, &path));
    }

    #[test]
    fn a_hard_link_in_the_same_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::write(&old, "x").unwrap();
        std::fs::hard_link(&old, &new).unwrap();
        std::fs::remove_file(&old).unwrap();
        let own = Pid::this();
        assert_eq!(other_name(&old, &new.metadata().unwrap(), own), Ok(new.clone()));
        let elsewhere = dir.path().join("folder/old");
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(other_name(&elsewhere, &new.metadata().unwrap(), own).is_err());
    }
}

//! Who else has a file open for writing that a restart cuts back or writes over: what they write meanwhile would be lost.
//!
//! ```text
//! read lease ─ had ──────────────────────────────▶ nobody
//!            ├ refused: somebody has ──▶ /proc ──▶ who; nobody there: one who cannot be seen
//!            └ there are none here ────▶ /proc ──▶ who; nobody there: nobody
//! ```
//! A read lease (F_SETLEASE) is refused while anybody has the file open, or mapped, for writing. Whoever started this
//! ckptbpf waits for it, and writes nothing meanwhile: our ancestors are nobody else.

use crate::freeze::tree;
use crate::memory::vma;
use crate::object::ends;
use crate::object::file::FileRecord;
use crate::sys::ids::FsIds;
use crate::sys::lock;
use crate::task::proc::{ProcDir, is_dying_here, reached_by};
use nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, PROC_SUPER_MAGIC, SMB_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

/// By device and inode.
type Identity = (u64, u64);

/// CIFS and SMB 2 (linux/magic.h).
const CIFS: FsType = FsType(0xff53_4d42);
const SMB2: FsType = FsType(0xfe53_4d42);

/// There a lease is the server's to give, and is refused for other reasons.
const OF_A_SERVER: [FsType; 4] = [NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, CIFS, SMB2];

/// Who has a file open for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Other {
    Process {
        pid: Pid,
        name: String,
        /// It has ended, or is about to.
        dying: bool,
    },
    Unseen,
}

impl std::fmt::Display for Other {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { pid, name, .. } => write!(f, "process {pid} ({name}) has it open for writing"),
            Self::Unseen => write!(f, "somebody who cannot be seen from here has it open for writing"),
        }
    }
}

impl Other {
    /// Whether it may be over in a moment: of what is killed, the end is not that of its files.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Process { dying: true, .. } | Self::Unseen)
    }
}

/// Those of `files` that somebody else has open for writing. Waits for somebody who ends, at most for `patience`.
///
/// # Errors
/// The owner's rights cannot be had.
pub fn writing<'f>(
    files: &'f [FileRecord],
    owner: &FsIds,
    patience: Duration,
) -> io::Result<Vec<(&'f FileRecord, Other)>> {
    let until = Instant::now() + patience;
    let own = ancestors();
    loop {
        let asked: Vec<(&FileRecord, Asked)> = {
            let _as_owner = owner.assume()?;
            files.iter().map(|file| (file, ask(file))).filter(|(_, asked)| *asked != Asked::Free).collect()
        };
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        // With our own rights: what others have open is not the owner's to see.
        let writers = look(&asked);
        let other = |file: &FileRecord, asked: Asked| {
            let all = writers.get(&(file.device, file.inode)).map_or(&[][..], Vec::as_slice);
            let mut others = all.iter().filter(|(pid, _)| !own.contains(pid));
            match others.clone().find(|(_, other)| !other.may_pass()).or_else(|| others.next()) {
                Some((_, other)) => Some(other.clone()),
                None => (asked == Asked::Open && all.is_empty()).then_some(Other::Unseen),
            }
        };
        let found: Vec<_> =
            asked.iter().filter_map(|&(file, asked)| Some((file, other(file, asked)?))).collect();
        if found.iter().any(|(_, other)| !other.may_pass()) || found.is_empty() || Instant::now() > until {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What asking for a lease has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Free,
    Open,
    Unknown,
}

fn ask(record: &FileRecord) -> Asked {
    let system = statfs(record.path()).map(|fs| fs.filesystem_type());
    if system.is_ok_and(|system| system == PROC_SUPER_MAGIC || ends::has_no_content(system)) {
        return Asked::Free;
    }
    // It waits for nobody who has a lease: such a one has it open.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(record.path());
    match opened.and_then(|file| lock::can_lease(&file)) {
        Ok(()) => Asked::Free,
        Err(e)
            if e.kind() == io::ErrorKind::WouldBlock && system.is_ok_and(|s| !OF_A_SERVER.contains(&s)) =>
        {
            Asked::Open
        }
        Err(_) => Asked::Unknown,
    }
}

/// This process, and whoever started it.
fn ancestors() -> HashSet<Pid> {
    let parent = |pid: &Pid| ProcDir::process(*pid).stat().ok().map(|stat| stat.parent());
    let above = |pid| std::iter::successors(Some(pid), parent).take_while(|pid| pid.as_raw() > 0);
    above(Pid::this()).chain(above(tree::front())).collect()
}

/// All who have one of the files open, or mapped, for writing, as far as they can be seen. Mappings are looked at where somebody
/// is known to have one or the other.
fn look(asked: &[(&FileRecord, Asked)]) -> HashMap<Identity, Vec<(Pid, Other)>> {
    let files: HashSet<Identity> = asked.iter().map(|(file, _)| (file.device, file.inode)).collect();
    let is_one = |found: &Metadata| found.is_file() && files.contains(&(found.dev(), found.ino()));
    let also_mapped = asked.iter().any(|(_, asked)| *asked == Asked::Open);
    let mut found: HashMap<Identity, Vec<(Pid, Other)>> = HashMap::new();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw) {
        let dir = ProcDir::process(reached_by(pid));
        let mut has: HashSet<Identity> = HashSet::new();
        let inodes: HashSet<u64> = files.iter().map(|(_, inode)| *inode).collect();
        let opened = dir.numbers("fd").unwrap_or_default().into_iter();
        let opened = opened.filter(|number| is_written(&dir, *number, &inodes));
        let links = opened.map(|number| format!("fd/{number}"));
        let mapped = also_mapped.then(|| mapped(&dir, &files)).into_iter().flatten();
        for link in links.chain(mapped) {
            has.extend(std::fs::metadata(dir.path(link)).ok().filter(is_one).map(|m| (m.dev(), m.ino())));
        }
        if has.is_empty() {
            continue;
        }
        // It may have ended by now; then it has nothing open.
        let Ok(stat) = ProcDir::process(pid).stat() else { continue };
        let other = Other::Process { pid, dying: is_dying_here(pid, &stat), name: stat.comm };
        for file in has {
            found.entry(file).or_default().push((pid, other.clone()));
        }
    }
    found
}

/// Whether a descriptor is open for writing, of what may be one of these. Nobody is asked who may not answer: the file itself is
/// not looked at (its inode is shown from Linux 5.14 on).
fn is_written(dir: &ProcDir, number: i32, inodes: &HashSet<u64>) -> bool {
    let info = dir.text(&format!("fdinfo/{number}")).unwrap_or_default();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = field("flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    let may_be =
        field("ino:").and_then(|inode| inode.parse().ok()).is_none_or(|inode| inodes.contains(&inode));
    may_be
        && flags.is_some_and(|flags| flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// The links of shared mappings that may be written to and may be of one of the files. The device that is shown is not always
/// that of the file.
fn mapped(dir: &ProcDir, files: &HashSet<Identity>) -> Vec<String> {
    let all = dir.text("maps").and_then(|text| vma::parse(&text)).unwrap_or_default();
    let is_one = |raw: &&vma::Raw| raw.is_shared() && raw.protection() & libc::PROT_WRITE as u32 != 0;
    let of_one = |raw: &&vma::Raw| files.iter().any(|(_, inode)| *inode == raw.inode);
    let link = |raw: &vma::Raw| format!("map_files/{:x}-{:x}", raw.start, raw.end);
    all.iter().filter(is_one).filter(of_one).map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
    };
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    fn others(path: &Path) -> Vec<Other> {
        let files = [FileRecord::of(path, &path.metadata().unwrap())];
        let found = writing(&files, &FsIds::current(), Duration::ZERO).unwrap();
        found.into_iter().map(|(_, other)| other).collect()
    }

    fn is_sleep(others: &[Other]) -> bool {
        matches!(others, [Other::Process { name, dying: false, .. }] if name == "sleep")
    }

    #[test]
    fn who_has_it_open_for_writing_is_named_and_we_and_our_ancestors_are_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let own = File::create(&path).unwrap();
        assert_eq!(others(&path), []);
        let mut sleep = Command::new("sleep").arg("60").stdout(own.try_clone().unwrap()).spawn().unwrap();
        executes(&sleep);
        let found = others(&path);
        // Where there are no leases, /proc tells the same.
        let record = FileRecord::of(&path, &path.metadata().unwrap());
        let looked = look(&[(&record, Asked::Unknown)]).remove(&(record.device, record.inode)).unwrap();
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        assert!(is_sleep(&found), "{found:?}");
        assert!(looked.iter().any(|(pid, _)| pid.as_raw() == sleep.id() as i32), "{looked:?}");
        let reader = Command::new("sleep").arg("60").stdin(Stdio::from(File::open(&path).unwrap())).spawn();
        let mut reader = reader.unwrap();
        executes(&reader);
        let found = others(&path);
        reader.kill().unwrap();
        reader.wait().unwrap();
        assert_eq!(found, []);
    }

    /// Until then it has what its parent has open.
    fn executes(child: &Child) {
        while std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() != "sleep\n" {
            std::thread::yield_now();
        }
    }

    #[test]
    fn one_who_cannot_be_seen_is_somebody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = File::create(&path).unwrap();
        let (here, _there) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let rights = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(here.as_raw_fd(), &[io::IoSlice::new(&[0])], &rights, MsgFlags::empty(), None).unwrap();
        drop(file);
        assert_eq!(others(&path), [Other::Unseen]);
    }
}

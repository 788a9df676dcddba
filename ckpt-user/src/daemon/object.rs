//! The shared memory behind a mapping, for those who have no right to follow its link in /proc/PID/map_files.
//!
//! The kernel lets root alone follow it, as the memory may be somebody else's, and more than what is mapped of it. So it is opened
//! for a process that traces the one which has it mapped, to be read, and only where that one has it mapped from its beginning: then
//! it could map all of it itself (mremap(2) makes a mapping longer and asks nobody), and its tracer could have it do so. And only
//! memory that has no name in any directory, and is nobody's but its maker's to give: of a file its owner decides, and of memory of
//! System V who may attach it to write, while its inode would let anybody open it so.

use super::proc_fd::ProcFd;
use crate::memory::behind::{self, is_without_a_name};
use crate::memory::vma::{self, Raw};
use crate::object::memfd;
use crate::sys::ids::FsIds;
use crate::sys::pidfd;
use crate::task::proc::Status;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// Opens what `process` has mapped at these addresses, for `tracer`, which is `uid`'s.
///
/// # Errors
/// EPERM: that does not trace it, or what is there is not to be had; ESRCH: it is gone.
pub fn open(tracer: Pid, uid: u32, process: &OwnedFd, mapping: Range<u64>) -> io::Result<OwnedFd> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let refused = || io::Error::from_raw_os_error(libc::EPERM);
    let named = || pidfd::names(process.as_fd());
    let pid = named()?.ok_or_else(gone)?;
    let there = ProcFd::of(pid)?;
    // Then the directory is that very process's.
    if named()? != Some(pid) {
        return Err(gone());
    }
    if !is_traced(&there, tracer)? {
        return Err(refused());
    }
    let mappings = vma::parse(&there.long_text("maps")?)?;
    // Nothing else is opened: others decide what becomes of an open(2) of a file of theirs.
    let device = memfd::internal_device().ok_or_else(refused)?;
    let wanted = to_be_had(&mappings, &mapping, device).ok_or_else(refused)?;
    let Range { start, end } = mapping;
    let found = {
        // The directory is its user's, and what that may not read is not read.
        let _as = FsIds { uid, gid: NOBODY, groups: Vec::new() }.assume()?;
        there.open(&format!("map_files/{start:x}-{end:x}"))?
    };
    // Something else may have been mapped there since, by a thread that is not traced.
    let is_it = is_object(&found, (device, wanted))?;
    if is_it && is_traced(&there, tracer)? { Ok(found.into()) } else { Err(refused()) }
}

/// A group that nobody has.
const NOBODY: u32 = 65534;

/// Whether it is memory without a name that has this device and inode. A segment of System V may have the same inode number.
fn is_object(found: &File, identity: (u64, u64)) -> io::Result<bool> {
    let metadata = found.metadata()?;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let name = name.as_os_str().as_bytes();
    let is_such = name == behind::ANONYMOUS.as_bytes() || name.starts_with(behind::MEMFD.as_bytes());
    Ok(is_such && (metadata.dev(), metadata.ino()) == identity)
}

/// Whether its first thread is traced by a thread of `tracer`, as status shows it (proc_pid_status(5)).
fn is_traced(there: &ProcFd, tracer: Pid) -> io::Result<bool> {
    let thread = Status::of(there.text("status")?).decimal("TracerPid")?;
    Ok(thread != 0 && std::fs::exists(format!("/proc/{tracer}/task/{thread}"))?)
}

/// The inode of shared memory without a name that is mapped at these addresses, and from its beginning, too.
fn to_be_had(mappings: &[Raw], wanted: &Range<u64>, device: u64) -> Option<u64> {
    let mut shared = mappings.iter().filter(|raw| raw.device == device && is_without_a_name(raw));
    let asked = shared.clone().find(|raw| (raw.start, raw.end) == (wanted.start, wanted.end))?.inode;
    shared.any(|raw| (raw.inode, raw.offset) == (asked, 0)).then_some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::Write;
    use std::process::{Child, Command, Stdio};

    /// Tests of it are root's.
    const ROOT: u32 = 0;

    #[test]
    fn what_is_not_shared_or_not_mapped_from_its_beginning_is_not_to_be_had() {
        let text = "1000-3000 rw-s 00000000 00:01 7 /dev/zero (deleted)\n\
                    3000-4000 rw-s 00002000 00:01 7 /dev/zero (deleted)\n\
                    5000-6000 rw-s 00001000 00:01 8 /memfd:x (deleted)\n\
                    7000-8000 rw-p 00000000 00:01 9 /memfd:y (deleted)\n\
                    9000-a000 rw-s 00000000 00:02 7 /dev/shm/file\n\
                    b000-c000 r--s 00000000 00:01 7 /SYSV0000002a (deleted)\n\
                    d000-e000 rw-s 00000000 00:01 10 [anon_shmem:queue]\n";
        let mappings = vma::parse(text).unwrap();
        let had = |start, end| to_be_had(&mappings, &(start..end), libc::makedev(0, 1));
        assert_eq!((had(0x1000, 0x3000), had(0x3000, 0x4000)), (Some(7), Some(7)));
        assert_eq!(had(0xd000, 0xe000), Some(10), "one that was given a name");
        assert_eq!(had(0x5000, 0x6000), None, "not from its beginning");
        assert_eq!(had(0x7000, 0x8000), None, "private");
        assert_eq!(had(0x9000, 0xa000), None, "another file system");
        assert_eq!(had(0xb000, 0xc000), None, "System V");
        assert_eq!(had(0x1000, 0x2000), None, "not these addresses");
    }

    #[test]
    fn what_was_opened_is_what_was_seen() {
        let memory = || File::from(memfd_create(c"ckptbpf", MFdFlags::MFD_CLOEXEC).unwrap());
        let (one, other) = (memory(), memory());
        let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).unwrap();
        assert!(is_object(&one, identity(&one)).unwrap());
        assert!(!is_object(&one, identity(&other)).unwrap());
        let file = tempfile::tempfile().unwrap();
        assert!(!is_object(&file, identity(&file)).unwrap());
    }

    /// A program that has shared memory with a word in it, a shared file, and a segment of System V that it may read.
    fn sharing() -> (Child, Vec<Raw>) {
        let line = "import ctypes, mmap, sys, tempfile\n\
            memory = mmap.mmap(-1, 8192)\n\
            memory[:4] = b'word'\n\
            file = tempfile.TemporaryFile()\n\
            file.truncate(4096)\n\
            of_file = mmap.mmap(file.fileno(), 4096)\n\
            libc = ctypes.CDLL(None)\n\
            segment = libc.shmget(0, 4096, 0o1600)\n\
            libc.shmat(segment, None, 0o10000)\n\
            libc.shmctl(segment, 0, None)\n\
            print(flush=True)\n\
            sys.stdin.read()\n";
        let mut command = Command::new("/usr/bin/python3");
        let mut child =
            command.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.as_mut().unwrap()),
            &mut String::new(),
        )
        .unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        (child, vma::parse(&maps).unwrap())
    }

    #[test]
    fn shared_memory_of_what_is_traced_can_be_read_and_nothing_else() {
        if crate::skipped::without_root() {
            return;
        }
        let (mut child, mappings) = sharing();
        let pid = Pid::from_raw(child.id().cast_signed());
        let process = pidfd::open(pid).unwrap();
        let shared = mappings.iter().filter(|raw| raw.is_shared());
        let shared: Vec<Range<u64>> = shared.map(|raw| raw.start..raw.end).collect();
        let memory = mappings.iter().find(|raw| raw.name == "/dev/zero (deleted)").unwrap();
        let memory = memory.start..memory.end;
        let number = |opened: io::Result<OwnedFd>| opened.unwrap_err().raw_os_error();
        let own = Pid::this();
        assert_eq!(number(open(own, ROOT, &process, memory.clone())), Some(libc::EPERM), "it is not traced");
        let _seized = ptrace::seize(pid, 0).unwrap();
        let mut opened = File::from(open(own, ROOT, &process, memory.clone()).unwrap());
        let mut word = [0; 4];
        std::io::Read::read_exact(&mut opened, &mut word).unwrap();
        assert_eq!(&word, b"word");
        assert!(opened.write(b"x").is_err(), "to be read");
        assert_eq!(number(open(pid, ROOT, &process, memory.clone())), Some(libc::EPERM), "another tracer");
        assert!(mappings.iter().any(|raw| raw.is_shared() && raw.name.starts_with("/SYSV")));
        assert!(shared.len() > 2);
        for other in shared.into_iter().filter(|one| *one != memory) {
            let opened = open(own, ROOT, &process, other.clone());
            assert_eq!(number(opened), Some(libc::EPERM), "a file, or a segment of System V: {other:x?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(number(open(own, ROOT, &process, memory)), Some(libc::ESRCH));
    }
}

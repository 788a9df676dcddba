//! A page's mark may come before its data: what reads past the page cache pins the page, which marks it, and the data
//! lands later, without a mark. process_vm_writev(2) does so too, as long as its source is waited for.
//!
//! All that was in flight over a scan is over in the freeze, where no thread is in a system call; what is in flight
//! without a thread is refused. So what may have been in flight is copied once more there. Three looks right after each
//! scan, each of which finds what the others would miss: at threads, a read whose descriptor is closed meanwhile; at
//! descriptors, since of a thread that runs nobody can tell which call it is in; and for what reads without a thread and
//! may be gone by the freeze.

use crate::memory::runs::PageSet;
use crate::sys::mem;
use crate::task::call::{self, InCall};
use crate::task::mounts;
use crate::task::proc::{ProcDir, is_gone, reached_by};
use nix::unistd::Pid;
use std::io;
use std::os::unix::ffi::OsStrExt;

/// What may have been on its way into a process's memory over the scan before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Into any page that was marked before, of any process.
    pub anywhere: bool,
    /// Into these pages: they are the buffers of threads that wait in a read.
    pub into: PageSet,
}

/// Right after a scan: a read that was in flight over it and is not any more has landed before a page is copied.
pub fn in_flight(process: Pid) -> InFlight {
    let pid = reached_by(process);
    let anywhere = or_ended(may_read_past_the_page_cache(pid)) || or_ended(has_asynchronous_reads(pid));
    let mut found = InFlight { anywhere, ..InFlight::default() };
    for tid in ProcDir::process(pid).numbers("task").unwrap_or_default() {
        let thread = ProcDir::thread(pid, Pid::from_raw(tid));
        let call = thread.text("syscall").map(|text| waits_in(&text).filter(|call| !copies(call, &thread)));
        let buffers = call.and_then(|call| match call {
            Some(Call::Reads { address, length }) => Ok(vec![pages(address, length)]),
            Some(Call::ReadsPieces { list, count }) => pieces(pid, list, count),
            Some(Call::Pins) => Err(io::ErrorKind::Other.into()),
            None => Ok(Vec::new()),
        });
        match buffers {
            Ok(buffers) => buffers.into_iter().for_each(|buffer| found.into.insert(buffer)),
            Err(error) => found.anywhere |= !is_gone(&error),
        }
    }
    // What a thread had open that has ended meanwhile was not to be seen.
    found.anywhere |= reached_by(process) != pid;
    found
}

/// What cannot be looked at is taken for the worst, unless nobody is there any more.
fn or_ended(found: io::Result<bool>) -> bool {
    found.unwrap_or_else(|error| !is_gone(&error))
}

/// A system call that waits while it has pages pinned.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// Into one buffer.
    Reads { address: u64, length: u64 },
    /// Into the buffers of a list of `struct iovec`.
    ReadsPieces { list: u64, count: u64 },
    /// Into what cannot be told from its arguments.
    Pins,
}

/// Of the text of /proc/PID/task/TID/syscall: number and arguments. `None` for a thread that runs, too.
fn waits_in(text: &str) -> Option<Call> {
    let InCall { number, arguments: [_, second, third, ..], .. } = call::parse(text)?;
    match number {
        libc::SYS_read | libc::SYS_pread64 => Some(Call::Reads { address: second, length: third }),
        libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => {
            Some(Call::ReadsPieces { list: second, count: third })
        }
        // io_destroy(2) waits for what is in flight, and its context is not to be seen any more.
        libc::SYS_process_vm_writev | libc::SYS_io_destroy | libc::SYS_ioctl => Some(Call::Pins),
        _ => None,
    }
}

/// Whether the read waits in a pipe, which pins nothing: what comes is copied, and marks the page then. The look at the call
/// came first: had that been another read, it is over by now.
fn copies(call: &Call, thread: &ProcDir) -> bool {
    let waits_in = || thread.text("wchan").unwrap_or_default();
    *call != Call::Pins && ["pipe_read", "anon_pipe_read", "fifo_pipe_read"].contains(&waits_in().as_str())
}

fn pages(address: u64, length: u64) -> std::ops::Range<u64> {
    let end = address.saturating_add(length).div_ceil(4096);
    address / 4096..end.max(address / 4096)
}

fn pieces(pid: Pid, list: u64, count: u64) -> io::Result<Vec<std::ops::Range<u64>>> {
    let mut bytes = vec![0; 16 * (count as usize).min(mem::MAX_IOVECS)];
    mem::read(pid, list, &mut bytes)?;
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    Ok(bytes.chunks_exact(16).map(|piece| pages(word(&piece[..8]), word(&piece[8..]))).collect())
}

/// File systems whose reads copy out of a page cache, or of something of the kernel's own, unless they are asked to go
/// past it. Of any other it is not known: fuse, 9p, cifs and more read into the program's pages. A file of an overlay is
/// one of a file system below, which is as a rule one of these.
const CACHED: &[&str] = &[
    "autofs",
    "bcachefs",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "mqueue",
    "nfs",
    "nfs4",
    "ntfs3",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "reiserfs",
    "rootfs",
    "securityfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
    "udf",
    "vfat",
    "xfs",
];

/// Whether there is what reads without a thread: the mappings of an io_uring(7), a context of io_setup(2), memory pinned for
/// either. io_destroy(2) waits for what is in flight. An io_uring that is closed does not, and is seen in the freeze, where what
/// is left of it refuses the checkpoint.
fn has_asynchronous_reads(pid: Pid) -> io::Result<bool> {
    let dir = ProcDir::process(pid);
    if dir.status()?.field("VmPin").is_some_and(|size| !size.starts_with("0 ")) {
        return Ok(true);
    }
    let is_one =
        |line: &str| line.ends_with(RING) || line.ends_with("/[aio] (deleted)") || line.ends_with("/[aio]");
    Ok(dir.text("maps")?.lines().any(is_one))
}

const RING: &str = "anon_inode:[io_uring]";

/// Whether a descriptor that can be read from is of O_DIRECT, of a file system that may go past the page cache anyway, or an
/// io_uring.
fn may_read_past_the_page_cache(pid: Pid) -> io::Result<bool> {
    let dir = ProcDir::process(pid);
    let mut mounts = None;
    for number in dir.numbers("fd")? {
        let info = match dir.text(&format!("fdinfo/{number}")) {
            Ok(info) => info,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let field = |name: &str| info.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
        let flags = field("flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok()).unwrap_or(0);
        if flags & libc::O_ACCMODE == libc::O_WRONLY || flags & libc::O_PATH != 0 {
            continue;
        }
        if flags & libc::O_DIRECT != 0 {
            return Ok(true);
        }
        // Asking the file itself would wait for its file system.
        let path = dir.link(&format!("fd/{number}")).unwrap_or_default();
        if path.as_os_str() == RING {
            return Ok(true);
        }
        if path.is_absolute() && !path.as_os_str().as_bytes().starts_with(b"/memfd:") {
            let mounts = match &mut mounts {
                Some(mounts) => mounts,
                // Ours: what lies outside of a process's own root directory is not in its list.
                none => none.insert(mounts::ours()?),
            };
            let id = field("mnt_id:").and_then(|id| id.parse().ok());
            let mount = mounts.iter().find(|mount| Some(mount.id) == id);
            if !mount.is_some_and(|mount| CACHED.contains(&mount.kind.as_str())) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_a_read_tells_where_to() {
        let read = waits_in("17 0x3 0x7f0000001000 0x8000 0x64000 0x0 0x0 0x7ffc0 0x7f11\n");
        assert_eq!(read, Some(Call::Reads { address: 0x7f00_0000_1000, length: 0x8000 }));
        let pieces = waits_in("295 0x3 0x7ffd0 0x2 0x64000 0x0 0x0 0x7ffc0 0x7f11\n");
        assert_eq!(pieces, Some(Call::ReadsPieces { list: 0x7ffd0, count: 2 }));
        assert_eq!(waits_in("311 0x7 0x1 0x1 0x1 0x1 0x0 0x7ffc0 0x7f11\n"), Some(Call::Pins));
        for none in ["running\n", "-1 0x7ffc0 0x7f11\n", "202 0x1 0x0 0x2 0x0 0x0 0x0 0x7ffc0 0x7f11\n", ""] {
            assert_eq!(waits_in(none), None, "{none}");
        }
    }

    #[test]
    fn a_buffer_is_all_pages_that_it_touches() {
        assert_eq!(pages(0x1fff, 2), 1..3);
        assert_eq!(pages(0x1000, 0x1000), 1..2);
        assert_eq!(pages(0x1000, 0), 1..1);
        assert_eq!(pages(0x1000, u64::MAX), 1..u64::MAX.div_ceil(4096));
    }
}

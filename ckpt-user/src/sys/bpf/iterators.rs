//! Reading an iterator program: a link, a descriptor from it, rows until the end.
//!
//! An iterator walks the tasks of the reader's pid namespace. Restricted to one process (Linux 6.1) it costs nothing
//! for the others on the node; where the kernel does not know that, it walks them all and the programs' filter drops
//! what is not tracked, but for mappings and descriptors, of which there are too many: there it is done without.
use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    time::Instant,
};

use zerocopy::FromBytes;

use super::Limits;

const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
const BPF_TRACE_ITER: u32 = 28;
/// Rows of a few thousand mappings; the kernel fills at most 32 KiB a read.
const FIRST_BUFFER: usize = 64 << 10;

/// `bpf_attr.link_create` with `iter_info` (include/uapi/linux/bpf.h).
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}

/// `bpf_iter_link_info.task`.
#[repr(C)]
struct TaskFilter {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// `bpf_attr.iter_create`.
#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// All rows of one run of an iterator program; of one process, by its id in our pid namespace, or of all.
///
/// # Errors
/// bpf(2) or read(2) failed; `EINVAL` or `E2BIG` with a process given means that this kernel cannot restrict iterators.
/// `InvalidData` for a row that is cut short, `FileTooLarge` and `TimedOut` beyond the limits.
pub(super) fn rows<T: FromBytes>(
    program: BorrowedFd<'_>,
    process: Option<u32>,
    limits: &Limits,
) -> io::Result<Vec<T>> {
    let link = link(program, process)?;
    let attribute = IterCreate { link: number(&link)?, flags: 0 };
    let stream = bpf(BPF_ITER_CREATE, &attribute)?;
    of_bytes(&read_all(File::from(stream), limits)?)
}

/// The rows that an iterator has written.
///
/// # Errors
/// `InvalidData` for a row that is cut short.
pub fn of_bytes<T: FromBytes>(bytes: &[u8]) -> io::Result<Vec<T>> {
    let chunks = bytes.chunks_exact(size_of::<T>());
    if !chunks.remainder().is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    chunks.map(|row| T::read_from_bytes(row).map_err(|_| io::ErrorKind::InvalidData.into())).collect()
}

fn link(program: BorrowedFd<'_>, process: Option<u32>) -> io::Result<OwnedFd> {
    let filter = TaskFilter { tid: 0, pid: process.unwrap_or(0), pid_fd: 0 };
    let attribute = LinkCreate {
        program: number(&program)?,
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: if process.is_some() { &raw const filter as u64 } else { 0 },
        iter_info_len: if process.is_some() { size_of::<TaskFilter>() as u32 } else { 0 },
        padding: 0,
    };
    bpf(BPF_LINK_CREATE, &attribute)
}

/// Everything up to the end. `EAGAIN` says that the kernel has looked at a million objects without a row to show for
/// it and lets others run before it goes on.
fn read_all(mut stream: File, limits: &Limits) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; FIRST_BUFFER];
    let mut filled = 0;
    let begun = Instant::now();
    loop {
        if limits.room.is_some_and(|room| filled > room) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if limits.time.is_some_and(|time| begun.elapsed() > time) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn number(fd: &impl AsRawFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// bpf(2) commands that give a new descriptor.
fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attribute` is the command's part of `union bpf_attr`, of the size that is passed, and what it points to
    // lives until the call returns; the kernel takes the rest as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    let fd = RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

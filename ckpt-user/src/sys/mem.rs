//! Another process's memory: process_vm_readv(2)/process_vm_writev(2), and /proc/PID/mem where these refuse.

use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A remote range: address and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    pub address: u64,
    pub len: usize,
}

/// The kernel's limit of iovecs in one call (UIO_MAXIOV).
pub const MAX_IOVECS: usize = 1024;

/// Copies the `ranges` one after the other into `out`; returns the bytes copied, which end at the first
/// range that cannot be read (PROT_NONE, absent file page).
///
/// # Errors
/// EPERM, ESRCH; EFAULT when not even the first byte could be read.
pub fn read_ranges(pid: Pid, ranges: &[Remote], out: &mut [u8]) -> io::Result<usize> {
    let total: usize = ranges.iter().map(|r| r.len).sum();
    if total > out.len() || ranges.len() > MAX_IOVECS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: total };
    let remote: Vec<libc::iovec> =
        ranges.iter().map(|r| libc::iovec { iov_base: r.address as *mut _, iov_len: r.len }).collect();
    // SAFETY: `local` covers `total` bytes of `out`, which is borrowed mutably for the call; the remote
    // vectors are only addresses in another process, which the kernel checks.
    let got = unsafe {
        libc::process_vm_readv(pid.as_raw(), &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
    };
    super::check(got as i64).map(|n| n as usize)
}

/// Reads exactly `out.len()` bytes at `address`.
pub fn read(pid: Pid, address: u64, out: &mut [u8]) -> io::Result<()> {
    let got = read_ranges(pid, &[Remote { address, len: out.len() }], out)?;
    if got == out.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// Writes `bytes` at `address` of a process we trace.
pub fn write(pid: Pid, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: bytes.len() };
    // SAFETY: the kernel only reads `bytes` through `local`; `remote` is an address in another process.
    let got = unsafe { libc::process_vm_writev(pid.as_raw(), &raw const local, 1, &raw const remote, 1, 0) };
    let got = super::check(got as i64)? as usize;
    if got == bytes.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// /proc/PID/mem: reads and writes whatever the protection of the mapping (FOLL_FORCE), half as fast.
#[derive(Debug)]
pub struct Forced(File);

impl Forced {
    pub fn open(pid: Pid) -> io::Result<Self> {
        std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).map(Self)
    }

    pub fn read(&self, address: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, address)
    }

    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, address)
    }
}

//! userfaultfd: the ioctls that the `userfaultfd` crate does not know (WP_ASYNC, COPY with MODE_WP, …).
//!
//! Layouts and numbers are those of linux/userfaultfd.h of Linux 6.18; a test checks sizes and numbers.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

const API: u64 = 0xaa;

pub const FEATURE_EVENT_FORK: u64 = 1 << 1;
pub const FEATURE_EVENT_REMAP: u64 = 1 << 2;
pub const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
pub const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// What dirty tracking asks of the kernel.
pub const TRACKING: u64 = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
/// What a lazy restart asks for on top.
pub const EVENTS: u64 = FEATURE_EVENT_FORK | FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP;

pub const MODE_MISSING: u64 = 1;
pub const MODE_WP: u64 = 2;

/// userfaultfd(2) flag: faults of the kernel are not served; allowed to every user.
pub const USER_MODE_ONLY: u64 = 1;

const COPY_DONTWAKE: u64 = 1;
const COPY_WP: u64 = 2;

const fn iowr(number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | API << 8 | number
}
const fn ior(number: u64, size: usize) -> u64 {
    2 << 30 | (size as u64) << 16 | API << 8 | number
}
const IOCTL_API: u64 = iowr(0x3f, 24);
const IOCTL_REGISTER: u64 = iowr(0x00, 32);
const IOCTL_UNREGISTER: u64 = ior(0x01, 16);
const IOCTL_WAKE: u64 = ior(0x02, 16);
const IOCTL_COPY: u64 = iowr(0x03, 40);
const IOCTL_ZEROPAGE: u64 = iowr(0x04, 32);
const IOCTL_WRITEPROTECT: u64 = iowr(0x06, 24);
const IOCTL_CONTINUE: u64 = iowr(0x07, 32);

/// One userfaultfd, of this or another process's address space.
#[derive(Debug)]
pub struct Uffd(userfaultfd::Uffd);

/// What the address space did; addresses in bytes, page-aligned.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at `address`.
    Fault { address: u64 },
    /// A child has a copy of the address space; this watches it.
    Fork(Uffd),
    /// `len` bytes moved, what is registered with them.
    Remap { from: u64, to: u64, len: u64 },
    /// The range is about to read as zero (MADV_DONTNEED and the like).
    Remove { start: u64, end: u64 },
    /// The range is not mapped any more.
    Unmap { start: u64, end: u64 },
}

/// Room for the message of [`Uffd::read`].
pub struct Messages(userfaultfd::EventBuffer);

impl Default for Messages {
    fn default() -> Self {
        Self(userfaultfd::EventBuffer::new(1))
    }
}

/// How a fill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Bytes that are now in place, counted from the start of the range.
    Bytes(u64),
    /// Nothing: the page at the start is there already.
    Exists,
    /// Nothing: an event of the address space waits to be read first.
    Busy,
    /// Nothing: the range is not mapped, or not registered here.
    Gone,
    /// Nothing: the process has ended.
    Dead,
}

/// Whether a descriptor is one.
///
/// # Errors
/// /proc is not as it should be.
pub fn is_one(fd: &OwnedFd) -> io::Result<bool> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(link.as_os_str() == "anon_inode:[userfaultfd]")
}

/// `USERFAULTFD_IOC_NEW`, an ioctl of /dev/userfaultfd.
pub const IOCTL_NEW: u64 = 0xaa00;

impl Uffd {
    /// Takes a fresh descriptor and agrees on `features`.
    ///
    /// # Errors
    /// EINVAL when the kernel lacks one of them.
    pub fn handshake(fd: OwnedFd, features: u64) -> io::Result<Self> {
        let mut api = [API, features, 0u64];
        let uffd = Self::adopt(fd);
        uffd.ioctl(IOCTL_API, api.as_mut_ptr())?;
        Ok(uffd)
    }

    /// A fresh descriptor of our own memory, by way of /dev/userfaultfd.
    ///
    /// # Errors
    /// Linux before 6.1 has no such device.
    pub fn of_device(device: &OwnedFd) -> io::Result<OwnedFd> {
        // SAFETY: the request takes a number.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let fd = super::check(i64::from(made))?;
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Takes over a descriptor that is set up already.
    pub fn adopt(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is open and from here on owned by the new value alone.
        Self(unsafe { userfaultfd::Uffd::from_raw_fd(fd.into_raw_fd()) })
    }

    /// Another descriptor of the same userfaultfd; what it watches is let go when the last one is closed.
    pub fn duplicate(&self) -> io::Result<Self> {
        self.as_fd().try_clone_to_owned().map(Self::adopt)
    }

    /// Whether a message waits to be read: a thread's fault, or an event.
    pub fn has_message(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(fds[0].revents().is_some_and(|found| found.contains(PollFlags::POLLIN)))
    }

    /// Whether a fault waits to be read: those are read before all events.
    pub fn has_fault(&self) -> io::Result<bool> {
        let shown = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", self.0.as_raw_fd()))?;
        let waiting = shown.lines().find_map(|line| line.strip_prefix("pending:"));
        Ok(waiting.is_some_and(|count| count.trim() != "0"))
    }

    /// The next message, one of those that have waited longest, but faults first; none when nothing waits (the descriptor must
    /// not block). Reading an event lets the thread that caused it go on.
    pub fn read(&self, room: &mut Messages) -> io::Result<Option<Event>> {
        let failed = |error| match error {
            userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
            other => io::Error::other(other),
        };
        let mut events = self.0.read_events(&mut room.0).map_err(failed)?;
        events.next().transpose().map(|read| read.map(event)).map_err(failed)
    }

    /// Whether the address space is gone: its processes have ended or execute other programs.
    pub fn is_dead(&self) -> bool {
        // UFFDIO_CONTINUE never changes anonymous memory: it fails, and how tells.
        const SOMEWHERE: u64 = 1 << 46;
        let asked = self.ioctl(IOCTL_CONTINUE, [SOMEWHERE, 4096, 0, 0].as_mut_ptr());
        asked.is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH))
    }

    /// Whether a call that changes the address space is under way: its event waits to be read, or will.
    pub fn is_changing(&self) -> bool {
        // Which userfaultfd_zeropage() of fs/userfaultfd.c looks at before it finds no such range.
        let asked = self.ioctl(IOCTL_ZEROPAGE, [1, 0, 0, 0].as_mut_ptr());
        asked.is_err_and(|e| e.raw_os_error() == Some(libc::EAGAIN))
    }

    /// A userfaultfd of this process itself.
    pub fn of_self(flags: u64) -> io::Result<OwnedFd> {
        // SAFETY: one integer argument; the result is a fresh descriptor or -1.
        let fd =
            super::check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC as u64) })?;
        // SAFETY: the kernel has just given it to us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    fn ioctl(&self, number: u64, words: *mut u64) -> io::Result<()> {
        // SAFETY: `words` points to an array of u64 at least as large as the size coded in `number`
        // (each caller below builds it beside the number); the kernel writes only within it.
        super::check(i64::from(unsafe { libc::ioctl(self.0.as_raw_fd(), number, words) })).map(drop)
    }

    /// Watches the page-aligned range with `mode` (MODE_MISSING, MODE_WP or both).
    ///
    /// # Errors
    /// EBUSY when another userfaultfd has it, EINVAL when this kind of mapping cannot be watched.
    pub fn register(&self, start: u64, len: u64, mode: u64) -> io::Result<()> {
        self.ioctl(IOCTL_REGISTER, [start, len, mode, 0].as_mut_ptr())
    }

    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(IOCTL_UNREGISTER, [start, len].as_mut_ptr())
    }

    /// Ends the watch over a range, if it is all ours or nobody's; whether it was.
    pub fn let_go(&self, start: u64, len: u64) -> bool {
        // EBUSY where it is somebody else's, which not every kernel's unregistering looks at.
        self.register(start, len, MODE_WP).is_ok() && self.unregister(start, len).is_ok()
    }

    /// Takes the protection from the pages of a registered range: each counts as written.
    ///
    /// # Errors
    /// ENOENT when some of it is not registered (any more).
    pub fn unprotect(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(IOCTL_WRITEPROTECT, [start, len, 0].as_mut_ptr())
    }

    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(IOCTL_WAKE, [start, len].as_mut_ptr())
    }

    /// Places `bytes` at `start`: write-protected, so that they count as clean, if `clean`. Wakes waiters if
    /// `wake`.
    pub fn copy(&self, start: u64, bytes: &[u8], clean: bool, wake: bool) -> io::Result<Filled> {
        let mode = if clean { COPY_WP } else { 0 } | if wake { 0 } else { COPY_DONTWAKE };
        let mut args = [start, bytes.as_ptr() as u64, bytes.len() as u64, mode, 0];
        let done = self.ioctl(IOCTL_COPY, args.as_mut_ptr());
        filled(done, args[4] as i64)
    }

    /// Places zero pages at `start`.
    pub fn zero(&self, start: u64, len: u64) -> io::Result<Filled> {
        let mut args = [start, len, 0, 0];
        let done = self.ioctl(IOCTL_ZEROPAGE, args.as_mut_ptr());
        filled(done, args[3] as i64)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn event(event: userfaultfd::Event) -> Event {
    match event {
        userfaultfd::Event::Pagefault { addr, .. } => Event::Fault { address: addr as u64 },
        userfaultfd::Event::Fork { uffd } => Event::Fork(Uffd(uffd)),
        userfaultfd::Event::Remap { from, to, len } => {
            Event::Remap { from: from as u64, to: to as u64, len: len as u64 }
        }
        userfaultfd::Event::Remove { start, end } => Event::Remove { start: start as u64, end: end as u64 },
        userfaultfd::Event::Unmap { start, end } => Event::Unmap { start: start as u64, end: end as u64 },
    }
}

fn filled(done: io::Result<()>, bytes: i64) -> io::Result<Filled> {
    match done {
        Ok(()) => Ok(Filled::Bytes(bytes as u64)),
        Err(_) if bytes > 0 => Ok(Filled::Bytes(bytes as u64)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EEXIST) => Ok(Filled::Exists),
            Some(libc::EAGAIN) => Ok(Filled::Busy),
            Some(libc::ENOENT) => Ok(Filled::Gone),
            Some(libc::ESRCH) => Ok(Filled::Dead),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as the C macros of linux/userfaultfd.h expand to on x86-64.
    #[test]
    fn ioctl_numbers_are_the_kernels() {
        assert_eq!(IOCTL_API, 0xc018_aa3f);
        assert_eq!(IOCTL_REGISTER, 0xc020_aa00);
        assert_eq!(IOCTL_UNREGISTER, 0x8010_aa01);
        assert_eq!(IOCTL_WAKE, 0x8010_aa02);
        assert_eq!(IOCTL_COPY, 0xc028_aa03);
        assert_eq!(IOCTL_ZEROPAGE, 0xc020_aa04);
        assert_eq!(IOCTL_WRITEPROTECT, 0xc018_aa06);
        assert_eq!(IOCTL_CONTINUE, 0xc020_aa07);
    }
}

//! The guardian: a tiny process that ends a lazily restored program when ckptbpf dies before its pages are there.
//!
//! A closed userfaultfd turns missing pages into zeros before any signal could kill the program. The guardian
//! shares ckptbpf's descriptor table (CLONE_FILES), so whatever becomes of ckptbpf, every userfaultfd stays
//! open, those of fork events too, until the guardian has ended.
//!
//! ```text
//!  start ─▶ waits ──dismissed: all pages are there──▶ exits
//!             └──ckptbpf is gone──▶ kills every member, until a look finds none ─▶ exits (descriptors close)
//! ```
//! A member is a process in the program's time namespace, which was made for this restart alone: orphans,
//! sessions of their own and other programs executed since count, nothing outside does. Members cannot read
//! missing pages meanwhile: nobody serves the fault, they wait for it. Nor does a fork get past its event.
//!
//! It has the shared descriptors but none of ckptbpf's memory, a session of its own, all signals blocked, and
//! is spared by the OOM killer where that may be asked for. After the fork it makes system calls and nothing
//! else: no allocation, no lock, no log. It is no child of ckptbpf, which waits for its children.
//!
//! Should it be killed itself, ckptbpf sees that at once and ends the program. Were both killed in one go, nobody would be
//! left: so neither its name nor its command line has the word ckptbpf in it, by which people kill, from its first moment.

use super::clone::CloneArgs;
use crate::task::proc::ProcDir;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use std::ffi::CStr;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// ckptbpf's side. The descriptors stay open whatever becomes of this value: the guardian polls them.
#[derive(Debug)]
pub struct Guardian {
    shared: &'static Shared,
    dismiss: ManuallyDrop<EventFd>,
    process: OwnedFd,
}

/// Memory that both share.
#[derive(Debug)]
#[repr(C)]
struct Shared {
    /// Inode of the members' time namespace; 0: nobody to kill yet.
    namespace: AtomicU64,
    /// The guardian's pidfd, once it is there.
    process: AtomicI32,
}

impl Guardian {
    /// Starts it, with id `pid` if one is wanted. Before this process becomes a subreaper: an orphan is what the guardian
    /// is to be.
    pub fn start(pid: Option<Pid>) -> io::Result<Self> {
        let (shared, words) = (shared()?, arguments()?);
        let dismiss = ManuallyDrop::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let keeper: ManuallyDrop<OwnedFd> = ManuallyDrop::new(super::pidfd::open(Pid::this())?);
        let (dismissed, gone) = (dismiss.as_raw_fd(), keeper.as_raw_fd());
        let tid = [pid.map_or(0, Pid::as_raw)];
        let args = CloneArgs {
            flags: (libc::CLONE_FILES | libc::CLONE_PIDFD) as u64,
            pidfd: shared.process.as_ptr() as u64,
            exit_signal: libc::SIGCHLD as u64,
            set_tid: if pid.is_some() { tid.as_ptr() as u64 } else { 0 },
            set_tid_size: u64::from(pid.is_some()),
            ..CloneArgs::default()
        };
        // SAFETY: fork-like clones (no CLONE_VM, no new stack): each child goes on here on its own copy of this
        // stack and never returns: it only makes system calls and exits. `args` and `tid` live across both.
        let middle = unsafe {
            let middle = libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0);
            if middle == 0 {
                let mask = u64::MAX;
                libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, 8);
                stand_apart(words);
                let own = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>());
                if own == 0 {
                    guard(dismissed, gone, &shared.namespace);
                }
                libc::_exit(i32::from(own < 0));
            }
            super::check(middle)?
        };
        match nix::sys::wait::waitpid(Pid::from_raw(middle as i32), None)? {
            nix::sys::wait::WaitStatus::Exited(_, 0) => {
                // SAFETY: the kernel has just put it into the table that is shared, and nobody else knows of it.
                let process = unsafe { OwnedFd::from_raw_fd(shared.process.load(Ordering::SeqCst)) };
                Ok(Self { shared, dismiss, process })
            }
            _ => Err(io::Error::other("it cannot be started")),
        }
    }

    /// From here on, should ckptbpf die, all of the namespace is killed.
    pub fn watch(&self, namespace: u64) {
        self.shared.namespace.store(namespace, Ordering::SeqCst);
    }

    /// Readable once it has ended: dismissed, or killed.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// All pages are there: it exits without doing anything.
    pub fn dismiss(&self) -> io::Result<()> {
        self.dismiss.write(1)?;
        Ok(())
    }
}

/// Memory that this process and its children share.
fn shared() -> io::Result<&'static Shared> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: aligned, zeroed, which are values of both, never unmapped, and only ever accessed as these atomics.
    Ok(unsafe { &*at.cast::<Shared>() })
}

/// Where this process's command line lies, which its copies have too: `arg_start` and `arg_end` of proc_pid_stat(5).
fn arguments() -> io::Result<Range<usize>> {
    let stat = ProcDir::process(Pid::this()).stat()?;
    let address = |number| usize::try_from(stat.number(number)).unwrap_or(0);
    Ok(address(48)..address(49).max(address(48)))
}

/// Whatever is done to ckptbpf by its name, command line, group or session is not done to the guardian. By the process in
/// the middle, for the guardian inherits it: on a busy machine a program may run, and ckptbpf be killed, before the
/// guardian has made its first system call.
fn stand_apart(words: Range<usize>) {
    // SAFETY: each call takes integers and pointers to constants; nothing allocates. The command line is this process's
    // own copy of what the kernel has put on its stack, and nobody reads it here any more.
    unsafe {
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"page-guardian".as_ptr(), 0, 0, 0);
        if words.start != 0 {
            std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(words.start), 0, words.len());
        }
    }
}

/// The guardian's life.
fn guard(dismissed: RawFd, keeper: RawFd, namespace: &AtomicU64) -> ! {
    // SAFETY: each call takes integers and pointers to constants or locals that outlive it; nothing allocates.
    unsafe {
        // The session that it has inherited is one whose leader has ended.
        libc::setsid();
        // Refused without CAP_SYS_RESOURCE: then it is one small process among others.
        let adjust = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if adjust >= 0 {
            libc::write(adjust, c"-1000".as_ptr().cast(), 5);
            libc::close(adjust);
        }
        loop {
            let waits = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut fds = [waits(dismissed), waits(keeper)];
            libc::poll(fds.as_mut_ptr(), 2, -1);
            if fds[0].revents != 0 {
                libc::_exit(0);
            }
            if fds[1].revents != 0 {
                break;
            }
        }
        let members = namespace.load(Ordering::SeqCst);
        if members != 0 {
            end_all(members);
        }
        libc::_exit(0);
    }
}

/// The time namespace of a process, by inode.
pub fn time_namespace(pid: Pid) -> io::Result<u64> {
    let path = Path::new(b"/proc/", pid.as_raw() as u32, b"/ns/time");
    inode(&path).ok_or_else(io::Error::last_os_error)
}

/// Kills every process of the time namespace and returns when none is left but zombies. Allocates nothing.
pub fn end_all(namespace: u64) {
    let mut alive = true;
    while alive {
        alive = false;
        let has_looked = each_number(c"/proc", |pid| alive |= kill_member(pid, namespace));
        // Whoever could not look has not seen that nobody is left.
        alive |= !has_looked;
        if alive {
            let pause = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            // SAFETY: reads one local structure.
            unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
        }
    }
}

/// Kills `pid` if it is a member; whether it was, or may have been.
fn kill_member(pid: u32, namespace: u64) -> bool {
    // SAFETY: integers only; the descriptor is closed below. It pins the process that is looked at.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        return !is_gone();
    }
    let mut member = inode(&Path::new(b"/proc/", pid, b"/ns/time")) == Some(namespace);
    if !member {
        // A leader that has ended shows no namespaces; its threads may run on.
        each_number(Path::new(b"/proc/", pid, b"/task").as_c_str(), |tid| {
            member |= inode(&Path::new(b"/proc/", tid, b"/ns/time")) == Some(namespace);
        });
    }
    // SAFETY: integers and a null siginfo, which pidfd_send_signal(2) allows; the descriptor is ours.
    unsafe {
        if member {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, 0, 0);
        }
        libc::close(pidfd as RawFd);
    }
    member
}

/// A path in /proc, nul-terminated, without the heap.
struct Path([u8; 48]);

impl Path {
    fn new(before: &[u8], number: u32, after: &[u8]) -> Self {
        let mut digits = [0; 10];
        let mut left = number;
        let mut at = digits.len();
        while left > 0 || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        let mut path = [0; 48];
        // The last byte stays nul whatever is given.
        let bytes = before.iter().chain(&digits[at..]).chain(after);
        for (to, from) in path[..47].iter_mut().zip(bytes) {
            *to = *from;
        }
        Self(path)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

fn inode(path: &Path) -> Option<u64> {
    let mut found = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a nul-terminated path and a structure of the right size, which all zeros initialise.
    unsafe {
        let done = libc::stat(path.as_c_str().as_ptr(), found.as_mut_ptr());
        (done == 0).then(|| found.assume_init().st_ino)
    }
}

/// Whether the call that has just failed did so because the process has ended.
fn is_gone() -> bool {
    matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// Calls `each` for every entry of the folder whose name is a number; whether all could be looked at.
fn each_number(folder: &CStr, mut each: impl FnMut(u32)) -> bool {
    // struct linux_dirent64: inode 8, offset 8, length 2, type 1, name.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let mut buffer = [0u8; 4096];
    // SAFETY: a nul-terminated path; the descriptor is closed below.
    let fd = unsafe { libc::open(folder.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    if fd < 0 {
        return false;
    }
    let is_whole = loop {
        // SAFETY: the kernel writes at most the buffer's length into it.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
        let Ok(got @ 1..) = usize::try_from(got) else { break got == 0 };
        let mut rest = &buffer[..got.min(buffer.len())];
        while rest.len() > NAME {
            let length = usize::from(u16::from_le_bytes([rest[LENGTH], rest[LENGTH + 1]]));
            let (entry, next) = rest.split_at(length.clamp(NAME, rest.len()));
            if let Some(number) = number(&entry[NAME..]) {
                each(number);
            }
            rest = next;
        }
    };
    // SAFETY: opened above, used by nobody else.
    unsafe { libc::close(fd) };
    is_whole
}

/// The number that a nul-terminated name is.
fn number(name: &[u8]) -> Option<u32> {
    let mut value = None;
    for &byte in name.iter().take_while(|&&b| b != 0) {
        let digit = u32::from(byte.checked_sub(b'0').filter(|&d| d < 10)?);
        value = Some(value.unwrap_or(0u32).checked_mul(10)?.checked_add(digit)?);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_numbers_are_made_without_the_heap() {
        assert_eq!(Path::new(b"/proc/", 0, b"/task").as_c_str(), c"/proc/0/task");
        assert_eq!(Path::new(b"/proc/", u32::MAX, b"/ns/time").as_c_str(), c"/proc/4294967295/ns/time");
        assert_eq!(number(b"417\0x"), Some(417));
        for other in [&b"self\0"[..], b"\0", b"4x\0", b"99999999999\0"] {
            assert_eq!(number(other), None);
        }
    }

    #[test]
    fn this_process_is_found_by_its_namespace() {
        let own = time_namespace(Pid::this()).unwrap();
        let mut found = false;
        each_number(c"/proc", |pid| {
            found |= pid == std::process::id() && inode(&Path::new(b"/proc/", pid, b"/ns/time")) == Some(own);
        });
        assert!(found);
    }
}

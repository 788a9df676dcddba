//! Beginning to track: a userfaultfd of the program's own address space, made by one injected system call.

use crate::freeze;
use crate::memory::{vdso, vma};
use crate::refusal::Refusal;
use crate::sys::inject::{self, Call};
use crate::sys::pidfd;
use crate::sys::uffd::{self, Uffd};
use crate::task::iterators::Kernel;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Freezes the tree shortly and gives each of `wanted` a userfaultfd, or the reason why it has none.
///
/// # Errors
/// When the tree does not stand still; nothing was changed.
pub fn arm(root: Pid, wanted: &[Pid], kernel: &Kernel) -> Result<Vec<(Pid, io::Result<Uffd>)>, Refusal> {
    let mut tree = freeze::freeze(root, kernel)?;
    let mut armed = Vec::new();
    for process in tree.processes.iter_mut().filter(|p| wanted.contains(&p.pid)) {
        armed.push((process.pid, arm_one(process)));
    }
    tree.thaw();
    Ok(armed)
}

fn arm_one(process: &mut freeze::FrozenProcess) -> io::Result<Uffd> {
    let pid = process.reached_by();
    let maps = vma::parse(&ProcDir::process(pid).text("maps")?)?;
    let vdso = vdso::find(&maps).ok_or_else(|| io::Error::other("it has no vdso"))?;
    let room = inject::find_room(&process.memory, &vdso)?;
    let pidfd = pidfd::of_thread(pid)?;
    let mut ours: Option<OwnedFd> = None;
    let mut keep = |fd: i32| {
        ours = Some(pidfd::get_fd(pidfd.as_fd(), fd)?);
        Ok(())
    };
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | uffd::USER_MODE_ONLY;
    let thread = process.threads.first_mut().ok_or_else(|| io::Error::other("it has no thread"))?;
    let stopped = thread.stopped.take().ok_or_else(|| io::Error::other("its thread was lost"))?;
    let call = Call::new(libc::SYS_userfaultfd, &[flags]);
    let (result, stopped) = inject::call(&process.memory, stopped, room, call, Some(&mut keep))?;
    thread.stopped = Some(stopped);
    match ours {
        Some(fd) => Uffd::handshake(fd, uffd::TRACKING),
        None => Err(io::Error::from_raw_os_error(-result as i32)),
    }
}

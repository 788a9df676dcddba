//! A front without a program: `attach` and `checkpoint PID` are done by its worker, and it waits for the end.
//!
//! That a process may be traced is not the worker's word alone: it is shown by the front, for which the kernel opens the process's
//! memory or does not (PTRACE_MODE_ATTACH, ptrace(2)). So nobody traces by a worker what they may not trace themselves.

use super::door::Door;
use crate::daemon::link::{Heard, Link, Word};
use crate::freeze::{tree, yama};
use crate::job::ended::{Ended, FAILED};
use crate::job::process;
use crate::job::signals::{Meaning, Signals};
use crate::job::terminal;
use crate::refusal::named;
use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// As the front: answers [`Word::Show`].
///
/// # Errors
/// The worker is gone.
pub(super) fn show(pid: i32, worker: &Link) -> io::Result<()> {
    worker.say_opened(&Word::Kept(true), File::open(format!("/proc/{pid}/mem")))
}

/// As the front: what the worker says next, but that it wants another core ([`Word::Programs`]), which it is answered.
///
/// # Errors
/// It is gone.
pub(super) fn next(worker: &Link, door: &Door) -> anyhow::Result<Word> {
    loop {
        match worker.hear()?.context("the daemon's worker was killed")?.word {
            Word::Programs(_) => super::tell_programs(worker, door),
            word => return Ok(word),
        }
    }
}

/// As the front: waits for the worker, and tells it signals, and of another core ([`Word::Programs`]). Returns what to end with.
///
/// # Errors
/// It cannot wait (poll).
pub(super) fn serve(pid: i32, worker: &Link, door: &Door) -> anyhow::Result<Ended> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    loop {
        let mut fds: Vec<PollFd<'_>> = worker.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(signals.fd(), PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(meaning) = signals.take() {
            let told = match meaning {
                Meaning::Forward(signal) => signal,
                Meaning::Everyones(signal) => -signal,
                Meaning::Child | Meaning::Woken => continue,
            };
            // That it is gone is seen below.
            let _ = worker.say(&Word::Signal(told), &[]);
        }
        loop {
            match worker.hear_what_waits() {
                Ok(None) => break,
                Ok(Some(Heard { word: Word::Done(status), .. })) => return Ok(Ended::Exited(status as u8)),
                Ok(Some(Heard { word: Word::Programs(_), .. })) => super::tell_programs(worker, door),
                Ok(Some(_)) => {}
                Err(_) => {
                    let again = format!("for more: ckptbpf attach {pid}");
                    terminal::say(&format!(
                        "the daemon's worker was killed: there are no more checkpoints; {again}"
                    ));
                    return Ok(Ended::Exited(FAILED));
                }
            }
        }
    }
}

/// As the worker: has the front show that it may trace the process.
///
/// # Errors
/// It may not, or there is no such process.
pub fn is_shown(pid: i32, front: &Link) -> anyhow::Result<()> {
    front.say(&Word::Show(pid), &[]).context("the front is gone")?;
    match front.hear().context("the front is gone")?.map(|heard| (heard.word, heard.descriptors)) {
        Some((Word::Kept(_), descriptors)) if descriptors.first().is_some_and(|fd| is_memory_of(pid, fd)) => {
            Ok(())
        }
        Some((Word::Made(number), _)) => {
            yama::of(Pid::from_raw(pid))
                .with_context(|| format!("cannot trace process {}", named(Pid::from_raw(pid))))?;
            let error = io::Error::from_raw_os_error(number.saturating_neg());
            Err(error).with_context(|| format!("process {pid} is none that you may trace"))
        }
        Some(_) => bail!("process {pid} is none that you may trace"),
        None => bail!("the front is gone"),
    }
}

/// As the worker: the same of a program's first process, which is the front's child, and so need not be shown.
///
/// # Errors
/// It is somebody else's.
pub fn is_child(root: i32) -> anyhow::Result<()> {
    if process::parent(root) != Some(tree::front().as_raw()) {
        bail!("process {root} is none of the front's");
    }
    Ok(())
}

/// Whether a descriptor is /proc/PID/mem of the process that has this id here and now. Its name alone could be that of one that is
/// gone, and inode numbers of /proc alone come again.
fn is_memory_of(pid: i32, fd: &OwnedFd) -> bool {
    let (memory, own) = (format!("/proc/{pid}/mem"), format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let identity = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let is_named = fs::read_link(&own).is_ok_and(|name| name.as_os_str() == memory.as_str());
    is_named && identity(&own).is_some_and(|found| identity(&memory) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn a_worker_that_wants_another_core_is_answered_and_heard_on() {
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (one, other) = socketpair(kind.0, kind.1, None, kind.2).unwrap();
        let (front, worker) = (Link::new(one), Link::new(other));
        worker.say(&Word::Programs(true), &[]).unwrap();
        worker.say(&Word::Done(0), &[]).unwrap();
        assert_eq!(next(&front, &Door::to_nobody()).unwrap(), Word::Done(0));
        assert_eq!(worker.hear().unwrap().unwrap().word, Word::Programs(false));
        drop(worker);
        assert!(next(&front, &Door::to_nobody()).is_err());
    }

    #[test]
    fn nothing_else_is_taken_for_the_memory_of_a_process() {
        let own = std::process::id() as i32;
        let opened = |path: &str| OwnedFd::from(File::open(path).unwrap());
        assert!(is_memory_of(own, &opened(&format!("/proc/{own}/mem"))));
        assert!(!is_memory_of(own, &opened("/proc/self/maps")));
        assert!(!is_memory_of(own, &opened("/dev/null")));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let memory = opened(&format!("/proc/{pid}/mem"));
        assert!(is_memory_of(pid, &memory) && !is_memory_of(own, &memory));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_memory_of(pid, &memory), "of one that is gone");
    }
}

//! Leave for a worker to trace the program ([`crate::daemon::admission`]): given by the program's processes, which the front, that
//! they come from, stops shortly for it, and has make one system call.

use crate::daemon::link::{Admitted, Link, Word};
use crate::freeze::seize;
use crate::memory::{vdso, vma};
use crate::refusal::Refusal;
use crate::sys::inject::{self, Call};
use crate::sys::mem::Forced;
use crate::sys::ptrace::Stopped;
use crate::task::proc::ProcDir;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long its threads may take to stand still, one after the other: others of the program may be stopped meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);

/// Has `process` name whoever has made the socket `to`, and says there what has come of it.
pub fn answer(process: Pid, to: OwnedFd) {
    let said = match admit(process, &to) {
        Ok(()) => Admitted::default(),
        Err(refusal) => Admitted {
            not_yet: matches!(refusal, Refusal::NotStopped(_)),
            refused: format!("{:#}", anyhow::Error::from(refusal)),
        },
    };
    // Who has not waited so long asks again.
    let _ = Link::new(to).say(&Word::Admitted(said), &[]);
}

fn admit(process: Pid, to: &OwnedFd) -> Result<(), Refusal> {
    let worker = getsockopt(to, PeerCredentials).map_or(0, |worker| worker.pid());
    let refused = |why: &str| Err(Refusal::unsupported(process, "cannot be traced by the daemon", why));
    if worker <= 0 {
        return refused("its worker is not to be seen from here");
    }
    if is_in_another_pid_namespace(process) {
        return refused("it is in a pid namespace in which it cannot name it (kernel.yama.ptrace_scope=1)");
    }
    let until = Instant::now() + PATIENCE;
    let mut refused = None;
    // One that is gone has nobody to be traced.
    for tid in ProcDir::process(process).numbers("task").unwrap_or_default() {
        match seize::stopped(process, Pid::from_raw(tid), until) {
            Ok(Some(thread)) => return named(process, thread, worker),
            Ok(None) => {}
            Err(refusal) => refused = Some(refusal),
        }
        if Instant::now() >= until {
            break;
        }
    }
    refused.map_or(Ok(()), Err)
}

/// The number of a process is what it is in the pid namespace of whoever names it.
fn is_in_another_pid_namespace(process: Pid) -> bool {
    let ids = ProcDir::process(process).status().and_then(|status| status.numbers("NSpid"));
    ids.is_ok_and(|ids| ids.len() > 1)
}

/// The thread names `worker`, for its whole process, and goes on.
fn named(process: Pid, thread: Stopped, worker: i32) -> Result<(), Refusal> {
    let call = Call::new(libc::SYS_prctl, &[libc::PR_SET_PTRACER as u64, worker as u64]);
    let made = || -> io::Result<()> {
        let memory = Forced::open(thread.tid())?;
        let maps = vma::parse(&ProcDir::process(thread.tid()).text("maps")?)?;
        let vdso = vdso::find(&maps).ok_or_else(|| io::Error::other("it has no vdso"))?;
        let room = inject::find_room(&memory, &vdso)?;
        let (result, thread) = inject::call(&memory, thread, room, call, None)?;
        thread.detach()?;
        if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(()) }
    };
    made().map_err(|error| {
        let why = format!("it could not name it (PR_SET_PTRACER): {error}");
        Refusal::unsupported(process, "cannot be traced by the daemon", why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};

    #[test]
    fn who_is_asked_to_names_whom_it_is_told_and_goes_on() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        let mut echoed = || {
            let mut line = String::new();
            writeln!(to, "line").unwrap();
            from.read_line(&mut line).unwrap();
            line
        };
        assert_eq!(echoed(), "line\n");
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (socket, _other) = socketpair(kind.0, kind.1, None, kind.2).unwrap();
        let process = Pid::from_raw(child.id() as i32);
        let said = admit(process, &socket).map_err(|refusal| refusal.to_string());
        // Only Yama has this.
        if Path::new("/proc/sys/kernel/yama").exists() {
            assert_eq!(said, Ok(()));
        } else {
            let said = said.unwrap_err();
            assert!(said.contains("(PR_SET_PTRACER): Invalid argument"), "{said}");
        }
        assert_eq!(ProcDir::process(process).status().unwrap().decimal("TracerPid").unwrap(), 0);
        assert_eq!(echoed(), "line\n");
        drop(to);
        assert!(child.wait().unwrap().success());
        // Of one that is gone nobody is to be traced.
        assert!(admit(process, &socket).is_ok());
    }
}

//! Leave to trace, for a worker, where Yama gives that to ancestors alone (kernel.yama.ptrace_scope=1): its front is one, and has
//! the process name the worker.
//!
//! ```text
//! worker ── Admit, a socket ────────▶ front ── PR_SET_PTRACER ── process
//!        ◀─ Admitted, by that socket ──
//! ```
//! It is asked for once the kernel has refused a thread, and counts for its whole process, for the worker and for what comes from
//! it, until either ends, the process names another one, or another of its threads than the first executes a program; children of
//! the process have it not (`yama_ptracer_add` of security/yama/yama_lsm.c). So it is asked for anew whenever it is missing.
//!
//! Each question has a socket of its own, so that what is said late is nobody's answer. The worker has made it: from that the
//! kernel tells the front whom to let (SO_PEERCRED).

use super::link::{Admitted, Heard, Link, Word};
use crate::freeze::yama::{self, Scope};
use crate::refusal::Refusal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

/// How long a front may take, in milliseconds. One that is stopped does not answer.
const ANSWER: u16 = 2000;

/// The front of this process, where that is a worker.
static FRONT: OnceLock<Arc<Link>> = OnceLock::new();

/// Notes that the program is the front's; the first call counts.
pub fn note_front(front: &Arc<Link>) {
    FRONT.get_or_init(|| front.clone());
}

/// Whether there is somebody to ask for leave.
pub fn may_be_asked() -> bool {
    FRONT.get().is_some()
}

/// Asks for leave to trace `process`, where Yama is what is in the way and there is somebody to ask.
///
/// # Errors
/// Why it is not given; [`Refusal::NotStopped`] where it may be the next time.
pub fn ask(process: Pid) -> Result<(), Refusal> {
    let Some(front) = FRONT.get() else { return Ok(()) };
    if !yama::of(process).is_err_and(|kept| kept.0 == Scope::Ancestors) {
        return Ok(());
    }
    match answered(front, process) {
        Ok(Admitted { refused, .. }) if refused.is_empty() => Ok(()),
        Ok(Admitted { refused, not_yet: true }) => Err(Refusal::NotStopped(refused)),
        Ok(Admitted { refused, .. }) => Err(Refusal::Traced(refused)),
        Err(error) => Err(Refusal::Traced(format!(
            "the program's ckptbpf, which has to let process {process} be traced (kernel.yama.ptrace_scope=1), does not \
             answer: {error}"
        ))),
    }
}

fn answered(front: &Link, process: Pid) -> io::Result<Admitted> {
    let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let (ours, its) = socketpair(kind.0, kind.1, None, kind.2)?;
    front.say(&Word::Admit(process.as_raw()), &[its.as_fd()])?;
    // Should it be killed, this end is told.
    drop(its);
    match Link::new(ours).hear_within(ANSWER)? {
        Some(Heard { word: Word::Admitted(admitted), .. }) => Ok(admitted),
        _ => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

    #[test]
    fn the_answer_to_a_question_is_heard_and_the_kernel_tells_who_has_asked() {
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (one, other) = socketpair(kind.0, kind.1, None, kind.2).unwrap();
        let said = Admitted { refused: "it is a stranger's".to_owned(), not_yet: false };
        let answer = said.clone();
        let front = std::thread::spawn(move || {
            let Heard { word, descriptors } = Link::new(other).hear().unwrap().unwrap();
            let to = descriptors.into_iter().next().unwrap();
            let asker = getsockopt(&to, PeerCredentials).unwrap().pid();
            Link::new(to).say(&Word::Admitted(answer), &[]).unwrap();
            (word, asker)
        });
        let link = Link::new(one);
        assert_eq!(answered(&link, Pid::from_raw(17)).unwrap(), said);
        assert_eq!(front.join().unwrap(), (Word::Admit(17), Pid::this().as_raw()));
        // Nobody is at the other end any more.
        assert!(answered(&link, Pid::from_raw(17)).is_err());
    }

    #[test]
    fn who_is_no_worker_asks_nobody() {
        assert!(ask(Pid::this()).is_ok());
    }
}

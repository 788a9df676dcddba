//! What a fork(2) leaves out: areas advised with MADV_WIPEONFORK, of which no event of userfaultfd(2) tells.
//!
//! ```text
//!  parent:  copies its page tables ─▶ waits for its event to be read ──────────────────▶ goes on, may advise anew
//!  pager:   is the next message an event? is a thread within a fork? ─▶ looks ─▶ reads that message
//! ```
//! So the look comes between the waiting of an event and its reading. Faults are read before events, and without a look. Should
//! all of those that waited be gone, as their threads were signalled, and a fork have begun and been copied meanwhile, within
//! the microsecond from there to the reading, it is looked up behind its event.

use crate::memory::vma::{self, Raw};
use crate::task::call;
use crate::task::proc::{ProcDir, reached_by};
use nix::unistd::Pid;
use std::io;
use std::ops::Range;

/// Pages that a child, if one were forked now, would get as zeros. None of a process that has ended since: nobody could see
/// its child's.
pub fn pages(pid: Pid) -> io::Result<Vec<Range<u64>>> {
    let text = unless_ended(ProcDir::process(reached_by(pid)).text("smaps"))?.unwrap_or_default();
    let is_wiped = |raw: &&Raw| raw.flags.iter().any(|flag| flag == "wf");
    let shown = vma::parse(&text)?;
    Ok(shown.iter().filter(is_wiped).map(|raw| raw.start / 4096..raw.end / 4096).collect())
}

/// Whether a thread of the process is within a call that may fork, or that cannot be told.
pub fn is_forking(pid: Pid) -> io::Result<bool> {
    let threads = unless_ended(ProcDir::process(pid).numbers("task"))?.unwrap_or_default();
    Ok(threads.into_iter().any(|tid| {
        // Without CAP_DAC_OVERRIDE another user's is closed.
        let shown = unless_ended(ProcDir::thread(pid, Pid::from_raw(tid)).text("syscall"));
        shown.map_or(true, |text| text.is_some_and(|text| is_fork(&text)))
    }))
}

fn is_fork(text: &str) -> bool {
    let number = call::parse(text).map(|call| call.number);
    matches!(number, Some(libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone3))
}

fn unless_ended<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::is_fork;

    #[test]
    fn calls_that_fork_are_told_from_others() {
        assert!(is_fork("56 0x1200011 0x0 0x0 0x7f8b5dda6b60 0x0 0x0 0x7fffe17f8d78 0x7f8b5de8f2ad\n"));
        assert!(is_fork("435 0x7ffe0 0x58 0x0 0x0 0x0 0x0 0x7fffe17f8d78 0x7f8b5de8f2ad\n"));
        assert!(!is_fork("561 0x0 0x0 0x0 0x0 0x0 0x0 0x7fffe17f8d78 0x7f8b5de8f2ad\n"));
        assert!(!is_fork("-1 0x7fffe17f8d78 0x7f8b5de8f2ad\n") && !is_fork("running\n") && !is_fork(""));
    }
}

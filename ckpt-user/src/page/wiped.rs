//! What a fork(2) leaves out: areas advised with MADV_WIPEONFORK, of which no event of userfaultfd(2) tells.
//!
//! ```text
//!  parent:  copies its page tables ─▶ waits for its event to be read ─────────▶ goes on, may advise anew
//!  pager:   is it changing? is a thread within a fork? ─▶ looks ─▶ reads the event
//! ```
//! So the look comes before every message that may be a fork's, and only one is read after it. Just a fork that began and
//! was copied between two system calls of the pager (changing? no; read) is looked up behind its event.

use crate::memory::vma::{self, Raw};
use crate::task::proc::{ProcDir, reached_by};
use nix::unistd::Pid;
use std::ops::Range;

/// Pages that a child, if one were forked now, would get as zeros. None of a process that has ended since: nobody could see
/// its child's.
pub fn pages(pid: Pid) -> Vec<Range<u64>> {
    let shown = ProcDir::process(reached_by(pid))
        .text("smaps")
        .and_then(|text| vma::parse(&text))
        .unwrap_or_default();
    let is_wiped = |raw: &&Raw| raw.flags.iter().any(|flag| flag == "wf");
    shown.iter().filter(is_wiped).map(|raw| raw.start / 4096..raw.end / 4096).collect()
}

/// Whether a thread of the process is within a call that may fork.
pub fn is_forking(pid: Pid) -> bool {
    let threads = ProcDir::process(pid).numbers("task").unwrap_or_default();
    threads.into_iter().any(|tid| {
        let shown = ProcDir::thread(pid, Pid::from_raw(tid)).text("syscall");
        // A thread that has ended shows none.
        shown.is_ok_and(|text| is_fork(&text))
    })
}

/// `text`: "56 0x…" in a call, "-1 0x…" in none, "running" when it is not asleep (fs/proc/base.c).
fn is_fork(text: &str) -> bool {
    let number = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    matches!(number, Some(libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone3))
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

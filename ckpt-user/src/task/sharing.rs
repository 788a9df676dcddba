//! Processes that share what a restart would give each its own of (clone(2) with CLONE_VM, CLONE_FILES, CLONE_FS or
//! CLONE_SIGHAND, not as threads), and threads that do not share what a restart would have them share: looked for with
//! kcmp(2), and refused.

use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd::{self, Kind};
use nix::unistd::Pid;
use std::cmp::Ordering;

const KINDS: [(Kind, &str); 4] = [
    (Kind::Vm, "its memory (CLONE_VM, vfork)"),
    (Kind::Files, "its descriptor table (CLONE_FILES)"),
    (Kind::Fs, "its working directory (CLONE_FS)"),
    (Kind::Sighand, "its signal actions (CLONE_SIGHAND)"),
];

/// # Errors
/// Names the first two processes that share something.
pub fn check(pids: &[Pid]) -> Result<(), Refusal> {
    for (kind, what) in KINDS {
        // Kept in kcmp's own order: each new one is compared with few.
        let mut sorted: Vec<Pid> = Vec::with_capacity(pids.len());
        for &pid in pids {
            let mut failed = None;
            let place = sorted.binary_search_by(|&other| {
                pidfd::compare(other, pid, kind, 0, 0).unwrap_or_else(|e| {
                    failed = Some(e);
                    Ordering::Less
                })
            });
            if let Some(error) = failed {
                return Err(error).reading(pid, "kcmp");
            }
            match place {
                Ok(at) => {
                    let what = format!("shares {what} with process {}", sorted[at]);
                    return Err(Refusal::unsupported(pid, what, "this cannot be saved yet"));
                }
                Err(at) => sorted.insert(at, pid),
            }
        }
    }
    Ok(())
}

/// # Errors
/// Names the first thread that no longer has in common with the others what a process's threads are born with
/// (unshare(2), clone(2) with CLONE_THREAD alone).
pub fn check_threads(pid: Pid, threads: impl Iterator<Item = Pid>) -> Result<(), Refusal> {
    let mut first = None;
    for tid in threads {
        let first = *first.get_or_insert(tid);
        for (kind, what) in [(Kind::Files, "a descriptor table"), (Kind::Fs, "a working directory")] {
            if pidfd::compare(first, tid, kind, 0, 0).reading(pid, "kcmp")? != Ordering::Equal {
                let what = format!("has a thread {tid} with {what} of its own");
                return Err(Refusal::unsupported(pid, what, "this cannot be saved yet"));
            }
        }
    }
    Ok(())
}

//! Processes that share what a restart would give each its own of (clone(2) with CLONE_VM, CLONE_FILES, CLONE_FS or
//! CLONE_SIGHAND, not as threads): looked for with kcmp(2), and refused.

use crate::freeze::Member;
use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd::{self, Kind};
use std::cmp::Ordering;

const KINDS: [(Kind, &str); 4] = [
    (Kind::Vm, "its memory (CLONE_VM, vfork)"),
    (Kind::Files, "its descriptor table (CLONE_FILES)"),
    (Kind::Fs, "its working directory (CLONE_FS)"),
    (Kind::Sighand, "its signal actions (CLONE_SIGHAND)"),
];

/// # Errors
/// Names the first two processes that share something.
pub fn check(members: &[Member]) -> Result<(), Refusal> {
    for (kind, what) in KINDS {
        // Kept in kcmp's own order: each new one is compared with few.
        let mut sorted: Vec<Member> = Vec::with_capacity(members.len());
        for &one in members {
            let (pid, mut failed) = (one.pid, None);
            let place = sorted.binary_search_by(|other| {
                pidfd::compare(other.thread, one.thread, kind, 0, 0).unwrap_or_else(|e| {
                    failed = Some(e);
                    Ordering::Less
                })
            });
            if let Some(error) = failed {
                return Err(error).reading(pid, "kcmp");
            }
            match place {
                Ok(at) => {
                    let what = format!("shares {what} with process {}", sorted[at].pid);
                    return Err(Refusal::unsupported(pid, what, "this cannot be saved yet"));
                }
                Err(at) => sorted.insert(at, one),
            }
        }
    }
    Ok(())
}

//! What bounds a worker's user beside rights: resource limits, the nice value, and the processors of their job. Its worker has no more of
//! them than its peer.
//!
//! But for two limits: that of open files, as a checkpoint has a copy of each description that the program has; and that of CPU time,
//! which counts for each process by itself, of which a user may begin as many as they like, and would end a worker of a long job.

use super::proc_fd::ProcFd;
use crate::sys::sched;
use crate::task::limits;
use crate::task::proc::Stat;
use nix::unistd::Pid;
use std::io;

/// Takes them over from `peer`, whose directory is `theirs`. Its caller looks afterwards whether that is still there.
///
/// # Errors
/// It is gone, or the kernel does not tell.
pub fn take_over(peer: Pid, theirs: &ProcFd, ours: &ProcFd) -> io::Result<()> {
    limits::lower_own(&limits::parse(&theirs.text("limits")?)?)?;
    let nice = |of: &ProcFd| of.text("stat").and_then(|text| Ok(Stat::parse(&text)?.number(NICE)));
    let (its, own) = (nice(theirs)?, nice(ours)?);
    if its > own {
        sched::set_own_nice(its as i32)?;
    }
    // Where none of them is the daemon's, it has those of the daemon.
    let _ = sched::set_own_affinity(&sched::affinity(peer)?);
    Ok(())
}

/// Field of /proc/PID/stat.
const NICE: usize = 19;

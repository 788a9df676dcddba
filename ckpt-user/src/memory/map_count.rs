//! How many mappings a process may have (vm.max_map_count).
//!
//! What is watched by a userfaultfd and what is not do not become one mapping: memory that grows while it is tracked may
//! take mappings that it would not take otherwise. So a process that has most of those it may have is not tracked.

use crate::record::Process;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::io;

/// The most mappings that a process of this machine may have.
pub fn limit() -> u64 {
    /// DEFAULT_MAX_MAP_COUNT of the kernel.
    const USUAL: u64 = 65530;
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
}

/// Whether so many are more than three quarters of that.
pub fn is_near(count: usize) -> bool {
    count as u64 > limit() / 4 * 3
}

/// How many a process has now.
pub fn of(pid: Pid) -> io::Result<usize> {
    Ok(ProcDir::process(pid).text("maps")?.lines().count())
}

/// Whether a restart finds room for the mappings of a process, and for the one that it needs itself meanwhile.
///
/// # Errors
/// Says what to do.
pub fn check(process: &Process) -> Result<(), String> {
    let (count, limit) = (process.mappings.len() as u64, limit());
    if count < limit {
        return Ok(());
    }
    Err(format!(
        "process {} has {count} mappings, and for a restart this machine must allow more than that: \
         sysctl vm.max_map_count={} (now {limit})",
        process.pid,
        count + 1
    ))
}

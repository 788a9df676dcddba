//! A first thread that has ended while others go on: what is left of it until the last of them ends.

use super::credentials;
use super::proc::ProcDir;
use crate::freeze::Member;
use crate::record::Thread;
use crate::refusal::Refusal;
use crate::sys::pidfd;
use nix::unistd::Pid;
use std::io;

/// # Errors
/// Named: this kernel does not let anybody reach what such a process has open.
pub fn check(member: &Member) -> Result<(), Refusal> {
    if member.thread == member.pid || pidfd::of_thread(member.thread).is_ok() {
        return Ok(());
    }
    let reason = "this kernel lets nobody duplicate what it has open (before Linux 6.9)";
    Err(Refusal::unsupported(member.pid, "goes on without its first thread", reason))
}

/// Its name, its ids, and how it has ended: /proc shows these. Before Linux 5.17 the last is told of the process, too, unless that
/// ends as a whole.
pub fn capture(pid: Pid) -> io::Result<Thread> {
    const EXIT_CODE: usize = 52;
    const NO_BITS: u32 = 0;
    let dir = ProcDir::thread(pid, pid);
    let mut name = dir.bytes("comm")?;
    name.truncate(name.len().saturating_sub(1));
    Ok(Thread {
        tid: pid.as_raw(),
        name,
        credentials: Some(credentials::capture(&dir.status()?, NO_BITS)?),
        ended: Some(dir.stat()?.number(EXIT_CODE) as i32),
        ..Thread::default()
    })
}

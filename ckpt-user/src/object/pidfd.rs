//! pidfd_open(2), CLONE_PIDFD: a descriptor that names a process or thread of the program, be it one that has ended and
//! was not waited for. It is made when the processes are there, or when their threads are (PIDFD_THREAD).

use super::{Object, Seen};
use crate::sys::pidfd;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PidRecord {
    /// Of a process, or of a thread where the description has PIDFD_THREAD.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// PIDFD_THREAD (linux/pidfd.h).
pub const THREAD: u32 = libc::O_EXCL as u32;

/// `members` are the processes of the program, the ended ones too.
///
/// # Errors
/// The reason why it cannot be saved.
pub fn capture(seen: &Seen, members: &[Pid]) -> Result<Object, String> {
    let field = seen.info.lines().find_map(|l| l.strip_prefix("Pid:"));
    let pid: i32 =
        field.and_then(|v| v.trim().parse().ok()).ok_or("this kernel does not show whose it is")?;
    if pid <= 0 {
        return Err("the process that it names (pidfd) has ended and was waited for".to_owned());
    }
    let is_thread = |&of: &Pid| ProcDir::thread(of, Pid::from_raw(pid)).path("stat").exists();
    if members.contains(&Pid::from_raw(pid)) || (seen.flags & THREAD != 0 && members.iter().any(is_thread)) {
        Ok(Object::Pid(PidRecord { pid }))
    } else {
        Err(format!("it names process {pid} (pidfd), which is not of the program"))
    }
}

/// The flags of pidfd_open(2) of a description.
pub fn flags(flags: u32) -> u32 {
    flags & (THREAD | libc::O_NONBLOCK as u32)
}

/// `members` are the ids that the image has.
///
/// # Errors
/// ESRCH where there is no such process, InvalidData for one that is not of the program.
pub fn rebuild(record: PidRecord, description: u32, members: &BTreeSet<i32>) -> io::Result<OwnedFd> {
    if !members.contains(&record.pid) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not of the program"));
    }
    pidfd::open_with(Pid::from_raw(record.pid), flags(description))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_none_but_its_own() {
        let own = std::process::id() as i32;
        assert!(rebuild(PidRecord { pid: own }, 0, &BTreeSet::from([own])).is_ok());
        let refused = rebuild(PidRecord { pid: own }, 0, &BTreeSet::from([own + 1])).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}

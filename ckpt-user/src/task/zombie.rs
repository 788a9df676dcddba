//! A child that has ended and was not waited for: its exit status is all that is left of it.

use super::proc::ProcDir;
use super::signals;
use crate::freeze::{self, tree};
use crate::refusal::{Reading, Refusal, named};
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;

/// One such child.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Zombie {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(int32, tag = "2")]
    pub parent: i32,
    #[prost(int32, tag = "3")]
    pub process_group: i32,
    #[prost(int32, tag = "4")]
    pub session: i32,
    /// As wait(2) gives it.
    #[prost(int32, tag = "5")]
    pub status: i32,
    #[prost(bytes = "vec", tag = "6")]
    pub name: Vec<u8>,
    /// Real user id, which waitid(2) shows.
    #[prost(uint32, tag = "7")]
    pub uid: u32,
    /// As [`crate::record::Process`] has it.
    #[prost(int32, optional, tag = "8")]
    pub exit_signal: Option<i32>,
}

/// The ended children of stopped processes. Those of their keeper are none of the program's.
///
/// # Errors
/// Named: a process that is killed in these very moments, a death with a core dump.
pub fn capture(of: &[Pid], children: impl Fn(Pid) -> io::Result<Vec<Pid>>) -> Result<Vec<Zombie>, Refusal> {
    let mut found = Vec::new();
    let keeper = tree::keeper();
    for parent in of.iter().copied().chain([keeper]) {
        for pid in children(parent).reading(parent, "its children")? {
            let dir = ProcDir::process(pid);
            let Ok(stat) = dir.stat() else { continue };
            if stat.state() != 'Z' {
                continue;
            }
            if stat.has_lost_its_first_thread() && !of.contains(&pid) {
                return Err(freeze::does_not_end(pid));
            }
            if stat.is_there() || parent == keeper {
                continue;
            }
            let status = stat.number(52) as i32;
            if status & 0x80 != 0 {
                let what = format!(
                    "has ended with a core dump, and process {} has not waited for it",
                    named(parent)
                );
                return Err(Refusal::unsupported(pid, what, "its status cannot be made again"));
            }
            let uid = dir.status().and_then(|s| s.numbers("Uid")).reading(pid, "status")?;
            found.push(Zombie {
                pid: pid.as_raw(),
                parent: parent.as_raw(),
                process_group: stat.process_group().as_raw(),
                session: stat.session().as_raw(),
                status,
                exit_signal: stat.exit_signal(),
                name: stat.comm.into_bytes(),
                uid: uid.first().copied().unwrap_or(0),
            });
        }
    }
    Ok(found)
}

/// Ends the skeleton with the recorded status. Its parent, a skeleton too, finds it and no signal of it: what was
/// still pending comes with the parent's own state.
pub fn rebuild(zombie: &Zombie, mut remote: Remote, parent: Option<&mut Remote>) -> io::Result<()> {
    signals::rebuild_actions(&[], &mut remote)?;
    let name = remote.string(&zombie.name)?;
    remote.call(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name, 0, 0, 0])?;
    remote.call(libc::SYS_setresuid, &[u64::from(zombie.uid); 3])?;
    let Some(parent) = parent else { return remote.end(zombie.status) };
    // Were SIGCHLD ignored, the child would be gone at once.
    signals::rebuild_actions(&[], parent)?;
    remote.end(zombie.status)?;
    let told = zombie.exit_signal.unwrap_or(libc::SIGCHLD);
    if told == 0 {
        return Ok(());
    }
    let set = parent.data(&(1u64 << (told - 1)).to_le_bytes())?;
    let at_once = parent.data(&[0; 16])?;
    match parent.call(libc::SYS_rt_sigtimedwait, &[set, 0, at_once, 8]) {
        Err(e) if e.raw_os_error() != Some(libc::EAGAIN) => Err(e),
        _ => Ok(()),
    }
}

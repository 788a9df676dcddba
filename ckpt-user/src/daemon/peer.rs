//! Who is at the other end of a connection, and whether a worker may be theirs.
//!
//! A worker has the ids of its peer and nothing that holds its peer back: a filter of system calls, a root directory or a
//! namespace of its own. So who is held back has none. What the kernel tells of a connection are the effective ids of whoever
//! connected; everything else is read of /proc/PID, and is that process's, as it is there before and after.

use super::proc_fd::ProcFd;
use super::wire::Refusal;
use crate::sys::{packet, pidfd};
use crate::task::proc::Status;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// As the kernel has it from connect(2).
#[derive(Debug)]
pub struct Peer {
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
    /// Those that it had then: one that it had dropped does not come back from the user database.
    pub groups: Vec<u32>,
    /// None before Linux 6.5.
    process: Option<OwnedFd>,
}

impl Peer {
    /// # Errors
    /// It is gone.
    pub fn of(socket: &OwnedFd) -> io::Result<Self> {
        let known = getsockopt(socket, PeerCredentials)?;
        Ok(Self {
            pid: Pid::from_raw(known.pid()),
            uid: known.uid(),
            gid: known.gid(),
            groups: packet::peer_groups(socket)?,
            process: packet::peer_process(socket)?,
        })
    }

    /// The peer's process, if a worker may be its. `sent` is the pidfd that it has sent of itself.
    ///
    /// # Errors
    /// Why not.
    pub fn judged(self, sent: Option<OwnedFd>, job: Option<u32>) -> Result<(Who, OwnedFd), Refusal> {
        let Self { pid, uid, gid, groups, process } = self;
        if uid == 0 {
            return Err(Refusal::IsRoot);
        }
        let process = process.or(sent).ok_or(Refusal::Process)?;
        let is_it = || pidfd::names(process.as_fd()).is_ok_and(|named| named == Some(pid));
        if pid.as_raw() <= 0 || !is_it() {
            return Err(Refusal::Process);
        }
        let who = Who { pid, uid, gid, groups };
        let theirs = ProcFd::of(pid).map_err(|_| Refusal::Process)?;
        held_back(&who, &theirs, &ProcFd::of(Pid::this()).map_err(|_| Refusal::Process)?)?;
        let groups = theirs.text("cgroup").map_err(|_| Refusal::Process)?;
        if job.is_some_and(|job| !is_of_job(&groups, job)) {
            return Err(Refusal::OtherJob);
        }
        // Then what was read was this process's.
        if is_it() { Ok((who, process)) } else { Err(Refusal::Process) }
    }

    /// Whether it is in our own user namespace: in another one it may be as many users as it likes.
    pub fn is_of_this_user_namespace(&self) -> bool {
        let namespace = |pid| ProcFd::of(pid).and_then(|of| of.link("ns/user"));
        namespace(self.pid).is_ok_and(|theirs| namespace(Pid::this()).is_ok_and(|ours| ours == theirs))
    }
}

/// What a worker is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Whether something holds the process back that would not hold back a worker of its.
///
/// # Errors
/// What does; [`Refusal::Process`] if it cannot be looked at.
pub fn held_back(who: &Who, theirs: &ProcFd, ours: &ProcFd) -> Result<(), Refusal> {
    let gone = |_| Refusal::Process;
    let status = Status::of(theirs.text("status").map_err(gone)?);
    let all = |name: &str, id: u32| status.numbers(name).is_ok_and(|ids| ids.iter().all(|one| *one == id));
    if !all("Uid", who.uid) || !all("Gid", who.gid) {
        return Err(Refusal::SetId);
    }
    if status.field("Seccomp").is_some_and(|mode| mode != "0") {
        return Err(Refusal::Filtered);
    }
    for namespace in ["ns/user", "ns/pid"] {
        if theirs.link(namespace).map_err(gone)? != ours.link(namespace).map_err(gone)? {
            return Err(Refusal::Namespace);
        }
    }
    // Where no security module labels processes, it cannot be read.
    let label = |of: &ProcFd| of.text("attr/current").unwrap_or_default();
    let (label, own) = (label(theirs), label(ours));
    if label != own && !is_unconfined(&label) { Err(Refusal::Confined) } else { Ok(()) }
}

/// Whether AppArmor or SELinux say that they confine nobody who is labelled so.
fn is_unconfined(label: &str) -> bool {
    let label = label.trim_matches(['\0', '\n']);
    label.is_empty() || label == "unconfined" || label.contains(":unconfined_t:")
}

/// Whether a process is of this Slurm job by its /proc/PID/cgroup. Where Slurm makes no control groups, none is of any.
fn is_of_job(cgroup: &str, job: u32) -> bool {
    let names = || cgroup.split(['/', '\n']).filter(|name| name.starts_with("job_"));
    let own = format!("job_{job}");
    names().next().is_none() || names().any(|name| name == own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn jobs_are_told_by_their_control_groups() {
        let of_job = "12:freezer:/slurm_n1/uid_1000/job_41/step_batch\n0::/init.scope\n";
        assert!(is_of_job(of_job, 41) && !is_of_job(of_job, 4) && !is_of_job(of_job, 412));
        assert!(is_of_job("0::/user.slice/session-3.scope\n", 41));
        assert!(is_of_job("0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n", 7));
    }

    #[test]
    fn labels_that_confine_nobody_are_known() {
        for label in ["", "unconfined\n", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0"] {
            assert!(is_unconfined(label), "{label}");
        }
        for label in ["docker-default (enforce)\n", "user_u:user_r:user_t:s0", "unconfined_helper (enforce)"]
        {
            assert!(!is_unconfined(label), "{label}");
        }
    }

    #[test]
    fn somebody_else_s_pidfd_is_not_the_peer_s() {
        let (one, _other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let peer = |uid| Peer { process: None, uid, ..Peer::of(&one).unwrap() };
        let own = || pidfd::open(Pid::this()).unwrap();
        assert_eq!(peer(0).judged(Some(own()), None).unwrap_err(), Refusal::IsRoot);
        assert_eq!(peer(1000).judged(None, None).unwrap_err(), Refusal::Process);
        let parent = pidfd::open(Pid::parent()).unwrap();
        assert_eq!(peer(1000).judged(Some(parent), None).unwrap_err(), Refusal::Process);
        let file = OwnedFd::from(std::fs::File::open("/proc/self/comm").unwrap());
        assert_eq!(peer(1000).judged(Some(file), None).unwrap_err(), Refusal::Process);
        // Tests do not run as this user.
        assert_eq!(peer(12345).judged(Some(own()), None).unwrap_err(), Refusal::SetId);
    }
}

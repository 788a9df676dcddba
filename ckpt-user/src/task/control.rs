//! What prctl(2) sets for one thread beside its credentials: the signal at its parent's death, machine checks,
//! speculation, writing back for others, the time-stamp counter.

use super::proc::{ProcDir, Status};
use crate::record::Process;
use crate::refusal::{Reading, Refusal};
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;

/// `PF_MCE_PROCESS` and `PF_MCE_EARLY`: a machine check is told as the thread has chosen; early.
const PF_MCE: (u32, u32) = (0x80, 0x0800_0000);
/// `PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE`.
const PF_IO_FLUSHER: u32 = 0x0018_0000;

const MCE_LATE: u32 = 0;
const MCE_EARLY: u32 = 1;
const MCE_DEFAULT: u32 = 2;

/// What is known of a thread, from either source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// PR_SET_PDEATHSIG, 0 for none.
    pub parent_death: u32,
    /// `PF_*`.
    pub flags: u32,
    /// `SECBIT_*`.
    pub securebits: u32,
}

/// One thread's settings.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Control {
    /// The signal it gets when its parent dies, 0 for none.
    #[prost(uint32, tag = "1")]
    pub parent_death: u32,
    /// PR_MCE_KILL: late 0, early 1; missing: as the machine does it.
    #[prost(uint32, optional, tag = "2")]
    pub machine_check: Option<u32>,
    /// PR_SET_IO_FLUSHER.
    #[prost(bool, tag = "3")]
    pub io_flusher: bool,
    /// PR_SET_SPECULATION_CTRL where it was taken away: PR_SPEC_DISABLE 4 or PR_SPEC_FORCE_DISABLE 8.
    #[prost(uint32, tag = "4")]
    pub store_bypass: u32,
    /// The same for indirect branches.
    #[prost(uint32, tag = "5")]
    pub indirect_branch: u32,
}

pub fn capture(known: &Known, status: &Status) -> Control {
    let chosen = known.flags & PF_MCE.0 != 0;
    let speculation = |field| {
        let shown = status.field(field).unwrap_or_default();
        match shown {
            "thread mitigated" | "conditional disabled" => DISABLED,
            "thread force mitigated" | "conditional force disabled" => FORCE_DISABLED,
            _ => 0,
        }
    };
    Control {
        parent_death: known.parent_death,
        machine_check: chosen.then_some(if known.flags & PF_MCE.1 != 0 { MCE_EARLY } else { MCE_LATE }),
        io_flusher: known.flags & PF_IO_FLUSHER == PF_IO_FLUSHER,
        store_bypass: speculation("Speculation_Store_Bypass"),
        indirect_branch: speculation("SpeculationIndirectBranch"),
    }
}

/// The signal at a parent's death comes when the thread ends that has made the process; a restart makes it by the
/// parent's first one.
///
/// # Errors
/// Names a process that another thread has made and that would get such a signal.
pub fn check(processes: &[Process]) -> Result<(), Refusal> {
    for process in processes {
        let is_told = process.threads.iter().filter_map(|t| t.control.as_ref()).any(|c| c.parent_death != 0);
        if !is_told || !processes.iter().any(|p| p.pid == process.parent) {
            continue;
        }
        let (pid, parent) = (Pid::from_raw(process.pid), Pid::from_raw(process.parent));
        if !ProcDir::thread(parent, parent).children().reading(parent, "children")?.contains(&pid) {
            return Err(Refusal::unsupported(
                parent,
                format!("has made process {pid} by another thread than its first one"),
                "the parent-death signal (PR_SET_PDEATHSIG) of that process waits for this thread's end",
            ));
        }
    }
    Ok(())
}

const DISABLED: u32 = 4;
const FORCE_DISABLED: u32 = 8;
/// `PR_SPEC_PRCTL`: a thread may choose; otherwise this machine has chosen for all of them.
const CHOICE: u64 = 1;

/// Gives the calling skeleton thread the recorded settings that its ids must not have been lowered for.
pub fn rebuild(wanted: &Control, remote: &mut Remote) -> io::Result<()> {
    const SET: u64 = 1;
    let machine_check = u64::from(wanted.machine_check.unwrap_or(MCE_DEFAULT));
    prctl(remote, "the policy of machine checks", [libc::PR_MCE_KILL as u64, SET, machine_check])?;
    if wanted.io_flusher {
        const PR_SET_IO_FLUSHER: u64 = 57;
        prctl(remote, "PR_SET_IO_FLUSHER", [PR_SET_IO_FLUSHER, 1, 0])?;
    }
    for (which, mode) in [(0, wanted.store_bypass), (1, wanted.indirect_branch)] {
        const GET: u64 = libc::PR_GET_SPECULATION_CTRL as u64;
        const PUT: u64 = libc::PR_SET_SPECULATION_CTRL as u64;
        let has = if mode == 0 { 0 } else { remote.call(libc::SYS_prctl, &[GET, which, 0, 0, 0])? };
        if has & CHOICE != 0 && has & u64::from(mode) == 0 {
            prctl(remote, "speculation control", [PUT, which, u64::from(mode)])?;
        }
    }
    Ok(())
}

/// The signal at the parent's death: any change of ids has taken it away, so it comes after them.
pub fn rebuild_last(wanted: &Control, remote: &mut Remote) -> io::Result<()> {
    prctl(
        remote,
        "the signal at its parent's death",
        [libc::PR_SET_PDEATHSIG as u64, u64::from(wanted.parent_death), 0],
    )
}

/// How many slots the futexes of the process have: it has chosen that.
pub fn rebuild_futexes(slots: u32, remote: &mut Remote) -> io::Result<()> {
    const PR_FUTEX_HASH: u64 = 78;
    const SET_SLOTS: u64 = 1;
    prctl(remote, "PR_FUTEX_HASH", [PR_FUTEX_HASH, SET_SLOTS, u64::from(slots)])
}

/// One prctl(2) whose failure names `what`.
pub fn prctl(remote: &mut Remote, what: &str, [option, a, b]: [u64; 3]) -> io::Result<()> {
    let result = remote.run(&[Call::new(libc::SYS_prctl, &[option, a, b, 0, 0])])?[0];
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::from_raw_os_error(-result as i32);
    Err(io::Error::new(error.kind(), format!("{what}: {error}")))
}

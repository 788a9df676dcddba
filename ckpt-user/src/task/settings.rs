//! Small settings of a process: those in files of /proc, and what prctl(2) sets for all of its threads.

use super::control::prctl;
use super::hidden::ProcessState;
use super::proc::{ProcDir, Status};
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;

/// As the files show them, and as prctl(2) gives them.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Settings {
    #[prost(int32, tag = "1")]
    pub oom_score_adj: i32,
    #[prost(uint32, optional, tag = "2")]
    pub coredump_filter: Option<u32>,
    /// PR_SET_DUMPABLE: 0 no, 1 yes, 2 for root alone.
    #[prost(uint32, optional, tag = "4")]
    pub dumpable: Option<u32>,
    /// PR_SET_CHILD_SUBREAPER.
    #[prost(bool, tag = "5")]
    pub subreaper: bool,
    /// PR_SET_THP_DISABLE.
    #[prost(bool, tag = "6")]
    pub no_huge_pages: bool,
    /// PR_SET_MEMORY_MERGE.
    #[prost(bool, tag = "7")]
    pub merge_memory: bool,
    /// Nice value of its session's autogroup (sched(7)).
    #[prost(int32, tag = "8")]
    pub autogroup: i32,
}

/// A dumpability that only a change of ids gives.
const ROOT_ALONE: u32 = 2;

/// Those that /proc shows.
pub struct Shown {
    pub oom_score_adj: i32,
    coredump_filter: Option<u32>,
    no_huge_pages: bool,
    merge_memory: bool,
    pub autogroup: i32,
}

pub fn shown(pid: Pid, status: &Status) -> io::Result<Shown> {
    let dir = ProcDir::process(pid);
    let hex = |name: &str| dir.text(name).ok().and_then(|t| u32::from_str_radix(t.trim(), 16).ok());
    // Kernels without the thing have no such file.
    let optional = |name: &str| dir.text(name).unwrap_or_default();
    let merge = optional("ksm_stat");
    let merge = merge.lines().find_map(|l| l.strip_prefix("ksm_merge_any:"));
    Ok(Shown {
        oom_score_adj: dir.text("oom_score_adj")?.trim().parse().unwrap_or(0),
        coredump_filter: hex("coredump_filter"),
        no_huge_pages: status.field("THP_enabled") == Some("0"),
        merge_memory: merge.is_some_and(|m| m.trim() == "yes"),
        autogroup: optional("autogroup").rsplit(' ').next().and_then(|n| n.trim().parse().ok()).unwrap_or(0),
    })
}

pub fn capture(pid: Pid, status: &Status, state: &ProcessState) -> io::Result<Settings> {
    let shown = shown(pid, status)?;
    Ok(Settings {
        oom_score_adj: shown.oom_score_adj,
        coredump_filter: shown.coredump_filter,
        dumpable: Some(state.dumpable),
        subreaper: state.subreaper,
        no_huge_pages: shown.no_huge_pages,
        merge_memory: shown.merge_memory,
        autogroup: shown.autogroup,
    })
}

/// Sets them from outside (`pid` is as this process sees it) or from inside. `own_session`: its session is the program's
/// own, and so is its autogroup.
pub fn rebuild(wanted: &Settings, pid: Pid, own_session: bool, remote: &mut Remote) -> io::Result<()> {
    let dir = ProcDir::process(pid);
    let current = shown(pid, &dir.status()?)?;
    let write = |name: &str, value: String| {
        std::fs::write(dir.path(name), value).map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))
    };
    if current.oom_score_adj != wanted.oom_score_adj {
        write("oom_score_adj", wanted.oom_score_adj.to_string())?;
    }
    if let Some(filter) = wanted.coredump_filter.filter(|_| wanted.coredump_filter != current.coredump_filter)
    {
        write("coredump_filter", format!("{filter:#x}"))?;
    }
    if own_session && current.autogroup != wanted.autogroup {
        write("autogroup", wanted.autogroup.to_string())?;
    }
    if wanted.dumpable == Some(ROOT_ALONE) {
        let own = remote.call(libc::SYS_setfsuid, &[1])?;
        remote.call(libc::SYS_setfsuid, &[own])?;
    }
    let flag = u64::from;
    prctl(
        remote,
        "PR_SET_CHILD_SUBREAPER",
        [libc::PR_SET_CHILD_SUBREAPER as u64, flag(wanted.subreaper), 0],
    )?;
    if current.no_huge_pages != wanted.no_huge_pages {
        prctl(
            remote,
            "PR_SET_THP_DISABLE",
            [libc::PR_SET_THP_DISABLE as u64, flag(wanted.no_huge_pages), 0],
        )?;
    }
    if current.merge_memory != wanted.merge_memory {
        const PR_SET_MEMORY_MERGE: u64 = 67;
        prctl(remote, "PR_SET_MEMORY_MERGE", [PR_SET_MEMORY_MERGE, flag(wanted.merge_memory), 0])?;
    }
    Ok(())
}

/// Who may look into it: any change of ids sets that anew, so it comes after those of all threads.
///
/// # Errors
/// Named: the kernel gives "root alone" by a change of ids only, and where fs.suid_dumpable says so.
pub fn rebuild_dumpable(wanted: &Settings, remote: &mut Remote) -> io::Result<()> {
    let dumpable = wanted.dumpable.unwrap_or(1);
    if dumpable != ROOT_ALONE {
        return prctl(remote, "PR_SET_DUMPABLE", [libc::PR_SET_DUMPABLE as u64, u64::from(dumpable), 0]);
    }
    if remote.call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE as u64, 0, 0, 0, 0])? != u64::from(ROOT_ALONE) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "its core may be dumped for root alone; set fs.suid_dumpable to 2 for the restart",
        ));
    }
    Ok(())
}

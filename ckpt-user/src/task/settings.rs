//! Small settings of a process that live in files of /proc: oom_score_adj, coredump_filter, personality.

use super::proc::ProcDir;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;

/// As the files show them.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Settings {
    #[prost(int32, tag = "1")]
    pub oom_score_adj: i32,
    #[prost(uint32, optional, tag = "2")]
    pub coredump_filter: Option<u32>,
    /// personality(2) bits.
    #[prost(uint32, tag = "3")]
    pub personality: u32,
}

pub fn capture(pid: Pid) -> io::Result<Settings> {
    let dir = ProcDir::process(pid);
    let hex = |name: &str| dir.text(name).ok().and_then(|t| u32::from_str_radix(t.trim(), 16).ok());
    let oom = dir.text("oom_score_adj")?;
    Ok(Settings {
        oom_score_adj: oom.trim().parse().unwrap_or(0),
        coredump_filter: hex("coredump_filter"),
        personality: hex("personality").unwrap_or(0),
    })
}

/// Sets them from outside (`pid` is as this process sees it) and, for the personality, from inside.
pub fn rebuild(wanted: &Settings, pid: Pid, remote: &mut Remote) -> io::Result<()> {
    let dir = ProcDir::process(pid);
    let current = capture(pid)?;
    if current.oom_score_adj != wanted.oom_score_adj {
        std::fs::write(dir.path("oom_score_adj"), wanted.oom_score_adj.to_string())?;
    }
    if let Some(filter) = wanted.coredump_filter.filter(|_| wanted.coredump_filter != current.coredump_filter)
    {
        std::fs::write(dir.path("coredump_filter"), format!("{filter:#x}"))?;
    }
    if current.personality != wanted.personality {
        remote.call(libc::SYS_personality, &[u64::from(wanted.personality)])?;
    }
    Ok(())
}

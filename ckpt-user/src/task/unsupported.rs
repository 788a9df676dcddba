//! State that a restart could not rebuild yet: each is looked for, and refused by name.

use super::proc::{ProcDir, Status};
use crate::refusal::{Reading, Refusal};
use nix::unistd::Pid;

/// # Errors
/// Names the first thing found that cannot be saved.
pub fn check(pid: Pid, status: &Status) -> Result<(), Refusal> {
    let dir = ProcDir::process(pid);
    if status.decimal("Seccomp").unwrap_or(0) != 0 {
        return Err(Refusal::unsupported(pid, "has seccomp filters", "they cannot be restored yet"));
    }
    // `time` is ours to set; the others must be those that ckptbpf itself lives in.
    for name in ["cgroup", "ipc", "mnt", "net", "user", "uts"] {
        let theirs = dir.link(&format!("ns/{name}")).reading(pid, "ns")?;
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).reading(pid, "ns")?;
        if theirs != ours {
            return Err(Refusal::unsupported(
                pid,
                format!("is in a {name} namespace of its own"),
                "run ckptbpf inside that namespace",
            ));
        }
    }
    if dir.text("timers").is_ok_and(|t| !t.trim().is_empty()) {
        return Err(Refusal::unsupported(pid, "has POSIX timers", "timer_create(2) is not supported yet"));
    }
    if dir.text("personality").is_ok_and(|p| u32::from_str_radix(p.trim(), 16).is_ok_and(|p| p & 0xff != 0)) {
        return Err(Refusal::unsupported(pid, "has another execution domain", "personality(2) is not Linux"));
    }
    Ok(())
}

//! A page's mark may come before its data: a direct read pins the page, which marks it, and the data lands later.

use crate::task::proc::ProcDir;
use nix::unistd::Pid;

/// Whether the process has a descriptor of O_DIRECT open now. Asked right after a scan: a read that was in flight
/// over it had one.
pub fn reads(pid: Pid) -> bool {
    let dir = ProcDir::process(pid);
    let numbers = dir.numbers("fd").unwrap_or_default();
    numbers.into_iter().any(|number| {
        let info = dir.text(&format!("fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
        i32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & libc::O_DIRECT != 0)
    })
}

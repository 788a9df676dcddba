//! The machine that an image is made on, or restarted on.

use crate::record::Machine;
use std::sync::OnceLock;

/// With the fingerprint of the vdso that its programs have.
pub fn here(vdso: u64) -> Machine {
    let (host, kernel) = nix::sys::utsname::uname().map_or_else(
        |_| (String::new(), String::new()),
        |u| (u.nodename().to_string_lossy().into_owned(), u.release().to_string_lossy().into_owned()),
    );
    Machine { host, kernel, cpu_features: cpu_features(), vdso }
}

/// The `flags` line of /proc/cpuinfo, sorted. Read once: on some machines that asks every processor for its speed.
pub fn cpu_features() -> Vec<String> {
    static FEATURES: OnceLock<Vec<String>> = OnceLock::new();
    FEATURES.get_or_init(read_cpu_features).clone()
}

fn read_cpu_features() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("flags")?.split_once(':').map(|(_, f)| f));
    let mut flags: Vec<String> =
        line.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    flags.sort_unstable();
    flags
}

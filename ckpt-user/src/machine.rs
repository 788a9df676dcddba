//! The machine that an image is made on, or restarted on.

use crate::record::Machine;
use std::sync::OnceLock;

/// With the fingerprint of the vdso that its programs have.
pub fn here(vdso: u64) -> Machine {
    let (host, kernel) = nix::sys::utsname::uname().map_or_else(
        |_| (String::new(), String::new()),
        |u| (u.nodename().to_string_lossy().into_owned(), u.release().to_string_lossy().into_owned()),
    );
    Machine { host, kernel, cpu_features: cpu_features(), vdso, boot_id: boot_id().to_owned() }
}

/// Of this machine since it was started; empty where the kernel does not tell.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    ID.get_or_init(|| read().trim().to_owned())
}

/// Whether a signal of a timer comes that was set anew, or deleted, while the signal waited: not from Linux 6.13 on.
pub fn delivers_stale_rings() -> bool {
    static DELIVERS: OnceLock<bool> = OnceLock::new();
    *DELIVERS.get_or_init(|| version(&here(0).kernel) < Some((6, 13)))
}

/// The first two numbers of a release.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The `flags` line of /proc/cpuinfo, sorted. Read once: on some machines that asks every processor for its speed.
pub fn cpu_features() -> Vec<String> {
    static FEATURES: OnceLock<Vec<String>> = OnceLock::new();
    FEATURES.get_or_init(read_cpu_features).clone()
}

fn read_cpu_features() -> Vec<String> {
    features(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

pub(crate) fn features(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("flags")?.split_once(':').map(|(_, f)| f));
    let mut flags: Vec<String> =
        line.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    flags.sort_unstable();
    flags
}

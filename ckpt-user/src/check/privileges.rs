//! Who we are: user id and capabilities.
use std::fs;

use super::Feature;

const AS_ROOT: &str = "run it by sudo";

/// A capability's bit and name, and what goes without it.
struct Capability(u32, &'static str, &'static str);

const WANTED: &[Capability] = &[
    Capability(19, "CAP_SYS_PTRACE", "programs of other users"),
    Capability(21, "CAP_SYS_ADMIN", "namespaces, eBPF on older kernels"),
    Capability(38, "CAP_PERFMON", "eBPF tracing"),
    Capability(39, "CAP_BPF", "eBPF"),
];
const CHECKPOINT_RESTORE: u32 = 40;
const SYS_RESOURCE: u32 = 24;

pub(super) fn probe() -> Vec<Feature> {
    let effective = effective().unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    let lacking: Vec<_> = WANTED.iter().filter(|c| !has(c.0)).map(|c| format!("{} ({})", c.1, c.2)).collect();

    let root = Feature::new("root", "programs of any user, everything below");
    let root = match (nix::unistd::geteuid().is_root(), lacking.is_empty()) {
        (true, true) => root,
        (true, false) => {
            root.fallback(format!("root without {}", lacking.join(", ")), "allow them in the container")
        }
        (false, _) => root.fallback("not root: only programs of this user", AS_ROOT),
    };
    let restore =
        Feature::new("CAP_CHECKPOINT_RESTORE", "own process ids, executables and mapped files at restart");
    let restore = match (has(CHECKPOINT_RESTORE), has(21)) {
        (true, _) => restore,
        (false, true) => restore.fallback("CAP_SYS_ADMIN does the same", ""),
        (false, false) => restore.fallback("not held: what it allows is probed below", AS_ROOT),
    };
    let resource = Feature::new("CAP_SYS_RESOURCE", "resource limits of other users' programs");
    let resource = if has(SYS_RESOURCE) {
        resource
    } else {
        resource.fallback("not held: limits are read from /proc and set before ids drop", "")
    };
    vec![root, restore, resource]
}

/// `CapEff` of this thread.
fn effective() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

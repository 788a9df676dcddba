//! The machine that an image is made on, or restarted on.

mod baseline;
mod features;

pub use baseline::{Baseline, TUNABLES};
pub use features::{cpu_features, missing};

pub(crate) use features::features;

use crate::record::Machine;
use crate::task::xstate::Layout;
use std::sync::OnceLock;

/// With the vdso that its programs have, and its fingerprint.
pub fn here(vdso: u64, vdso_image: Vec<u8>) -> Machine {
    let (host, kernel) = nix::sys::utsname::uname().map_or_else(
        |_| (String::new(), String::new()),
        |u| (u.nodename().to_string_lossy().into_owned(), u.release().to_string_lossy().into_owned()),
    );
    Machine {
        host,
        kernel,
        cpu_features: cpu_features(),
        vdso,
        boot_id: boot_id().to_owned(),
        vdso_image,
        xsave: Layout::own().components.clone(),
        cpu_baseline: String::new(),
        machine_id: id().to_owned(),
    }
}

impl Machine {
    /// What the program was told of the processor, if less than there is.
    pub fn baseline(&self) -> Option<Baseline> {
        Baseline::of(&self.cpu_baseline)
    }

    /// Whether it is this machine, started anew or not.
    pub fn is_here(&self) -> bool {
        let here = here(0, Vec::new());
        let is_known = |own: &str, other: &str| !own.is_empty() && own == other;
        is_known(&here.boot_id, &self.boot_id)
            || (here.host == self.host && is_known(&here.machine_id, &self.machine_id))
    }

    /// Of the processor counts no more than the program was told of.
    pub fn limit(&mut self, baseline: Baseline) {
        self.cpu_features.retain(|flag| baseline.has(flag));
        self.cpu_baseline = baseline.name().to_owned();
    }
}

/// Finds out what [`here`] needs and takes a while: before a freeze.
pub fn prepare() {
    cpu_features();
    Layout::own();
    id();
}

/// Of this machine since it was started; empty where the kernel does not tell.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    ID.get_or_init(|| read().trim().to_owned())
}

/// /etc/machine-id: tells a reboot of this machine from another machine of the same name; empty where there is none.
pub fn id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    ID.get_or_init(|| read().trim().to_owned())
}

/// Whether a signal of a timer comes that was set anew, or deleted, while the signal waited: not from Linux 6.13 on.
pub fn delivers_stale_rings() -> bool {
    static DELIVERS: OnceLock<bool> = OnceLock::new();
    *DELIVERS.get_or_init(|| version(&here(0, Vec::new()).kernel) < Some((6, 13)))
}

/// The first two numbers of a release.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

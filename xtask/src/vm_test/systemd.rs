//! A machine with systemd, and control groups of the second version alone: a job is a service, and goes on after a reboot; the daemon is
//! the unit that is shipped.

use std::fmt;

use anyhow::Result;
use serde::Deserialize;

use super::journey::{Arrival, Disk, Ground, label};
use super::machine::Machine;
use super::plan::Test;
use super::share::Share;

const DISK_MIB: u64 = 512;
/// Runs in place of the machine's first process.
const INSTEAD: &str = "instead";

/// Of this machine, whose root the virtual one has.
const PROGRAM: &str = "/lib/systemd/systemd";

pub fn is_here() -> bool {
    std::path::Path::new(PROGRAM).exists()
}

/// One row of kernels.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Systemd {
    pub kernel: String,
}

impl fmt::Display for Systemd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "systemd under {}: launch, reboot, run, reboot, daemon", self.kernel)
    }
}

impl Systemd {
    pub fn boot(&self, ground: &Ground) -> Result<Arrival> {
        let name = label(self);
        let disk = Disk::make(ground.folder.join(format!("{name}.disk")), DISK_MIB)?;
        let kernel = ground.kernel(&self.kernel)?;
        for leg in ["launch", "run", "daemon"] {
            let script = Ground::script("systemd.sh", &[leg])?;
            let label = format!("{name}-{leg}");
            let initrd = ground.pack_test(&label, kernel, Test { name: INSTEAD.into(), ..script })?;
            let share = Share::begin("/", "root")?;
            let disks = [disk.0.as_path()];
            let machine =
                Machine { disks: &disks, share: Some(&share), ..Machine::new(&kernel.vmlinux, &initrd) };
            let arrival = ground.run(&label, leg, &machine)?;
            if arrival.is_err() {
                return Ok(arrival);
            }
        }
        Ok(Ok(()))
    }
}

//! Two machines as two nodes: kernels, process ids and clocks of their own, and one cable between them. A job is checkpointed on
//! one, its directory copied, and restarted on the other.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::journey::{Arrival, Ground, label};
use super::machine::{Machine, wait_for_socket};

/// The victim that looks at its own process ids and clocks.
const PROGRAM: &str = "travel";
/// When it is for the second machine; the first has this machine's time.
const LATER: &str = "2040-01-01T00:00:00";

/// One row of kernels.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    /// Where it begins.
    pub origin: String,
    /// Where it goes on.
    pub target: String,
    #[serde(default)]
    pub short: bool,
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "two nodes {}→{}", self.origin, self.target)
    }
}

impl Nodes {
    pub fn meet(&self, ground: &Ground) -> Result<Arrival> {
        let name = label(self);
        let cable = Cable(std::env::temp_dir().join(format!("ckptbpf-{}-{name}", std::process::id())));
        let run = |role: &str, kernel: &str| -> Result<Arrival> {
            let devices = cable.end(role)?;
            let kernel = ground.kernel(kernel)?;
            let label = format!("{name}-{role}");
            let initrd = ground.pack(&label, kernel, &["node.sh", role, PROGRAM])?;
            let machine = Machine { devices: &devices, ..Machine::new(&kernel.vmlinux, &initrd) };
            ground.run(&label, role, &machine)
        };
        let (origin, target) = std::thread::scope(|scope| {
            let origin = scope.spawn(|| run("origin", &self.origin));
            let target = run("target", &self.target);
            (origin.join(), target)
        });
        let Ok(origin) = origin else { bail!("a thread that watches a machine has panicked") };
        Ok(origin?.and(target?))
    }
}

/// A socket on this machine, at which one QEMU listens.
struct Cable(PathBuf);

impl Cable {
    /// What QEMU is told of this end. The origin has to be there first.
    fn end(&self, role: &str) -> Result<Vec<String>> {
        let (server, number, time) = match role {
            "origin" => ("on", 1, None),
            _ => ("off", 2, Some(LATER)),
        };
        if server == "off" {
            wait_for_socket(&self.0)?;
        }
        let mut words = vec![
            "-netdev".into(),
            format!("stream,id=cable,server={server},addr.type=unix,addr.path={}", self.0.display()),
            "-device".into(),
            format!("virtio-net-pci,netdev=cable,romfile=,mac=52:54:00:12:34:0{number}"),
        ];
        words.extend(time.map(|time| ["-rtc".to_owned(), format!("base={time}")]).into_iter().flatten());
        Ok(words)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // QEMU may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

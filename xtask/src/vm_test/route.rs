//! A program's way from machine to machine: checkpoints in one, the restart in the next, its directory on a disk.

use std::fmt;

use anyhow::Result;
use serde::Deserialize;

use super::journey::{Arrival, Disk, Ground, label};
use super::machine::{Machine, WHOLE};

const DISK_MIB: u64 = 512;

/// One row of kernels.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A victim that counts, and writes to a file.
    pub program: String,
    pub mode: Mode,
    /// By their names; the program begins under the first and ends under the last.
    pub kernels: Vec<String>,
    /// As QEMU calls them, one for each kernel; the whole of what can be emulated if there are none.
    #[serde(default)]
    pub processors: Vec<String>,
    /// `--cpu-baseline` of the launch.
    pub baseline: Option<String>,
    /// What the last restart has to be refused for.
    pub refused: Option<String>,
    #[serde(default)]
    pub short: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Eager,
    Lazy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.program, self.mode)?;
        for (leg, kernel) in self.kernels.iter().enumerate() {
            let arrow = if leg == 0 { "" } else { "→" };
            write!(f, "{arrow}{kernel}")?;
            if let Some(processor) = self.processors.get(leg) {
                write!(f, " on {processor}")?;
            }
        }
        if let Some(baseline) = &self.baseline {
            write!(f, ", told of {baseline}")?;
        }
        match &self.refused {
            Some(reason) => write!(f, ", refused for {reason}"),
            None => Ok(()),
        }
    }
}

impl Route {
    fn processor(&self, leg: usize) -> &str {
        self.processors.get(leg).map_or(WHOLE, String::as_str)
    }

    /// Takes the program all the way.
    pub fn travel(&self, ground: &Ground) -> Result<Arrival> {
        let name = label(self);
        let disk = Disk::make(ground.folder.join(format!("{name}.disk")), DISK_MIB)?;
        let mode = self.mode.to_string();
        for (leg, wanted) in self.kernels.iter().enumerate() {
            let is_last = leg + 1 == self.kernels.len();
            let mut words = vec!["crossing.sh", "next", &mode, &self.program];
            match &self.refused {
                _ if leg == 0 => words[1] = "first",
                Some(reason) if is_last => {
                    words[1] = "refused";
                    words.push(reason);
                }
                None if is_last => words[1] = "last",
                _ => {}
            }
            let kernel = ground.kernel(wanted)?;
            let label = format!("{name}-{}", leg + 1);
            let initrd = ground.pack(&label, kernel, &words)?;
            let disks = [disk.0.as_path()];
            let words: Vec<_> = self.baseline.iter().map(|level| ("baseline", level.clone())).collect();
            let machine = Machine {
                disks: &disks,
                words: &words,
                processor: self.processor(leg),
                ..Machine::new(&kernel.vmlinux, &initrd)
            };
            if let Err(why) = ground.run(&label, wanted, &machine)? {
                return Ok(Err(format!("leg {} under Linux {}, {why}", leg + 1, kernel.version)));
            }
        }
        Ok(Ok(()))
    }
}

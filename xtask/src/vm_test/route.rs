//! A program's way from kernel to kernel: checkpoints under one, the restart under the next, its directory on a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::fetch::Fetched;
use super::guest::{self, Outcome};
use super::pack;
use super::plan::{Plan, Programs, Test};
use crate::cmd;

/// What is run in each machine.
const SCRIPT: &str = "vm-test/guest/crossing.sh";
const DISK: u64 = 512 << 20;

/// One row of kernels.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A victim that counts, and writes to a file.
    pub program: String,
    pub mode: Mode,
    /// By their names; the program begins under the first and ends under the last.
    pub kernels: Vec<String>,
    #[serde(default)]
    pub short: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Eager,
    Lazy,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Eager => "eager",
            Mode::Lazy => "lazy",
        };
        write!(f, "{} {mode} {}", self.program, self.kernels.join("→"))
    }
}

/// Takes the program all the way; whether it arrived, and where it did not.
pub fn travel(
    route: &Route,
    kernels: &BTreeMap<&str, &Fetched>,
    programs: &Programs,
    folder: &Path,
) -> Result<Result<(), String>> {
    let name = route.to_string().replace([' ', '→'], "-");
    let disk = Disk::make(folder.join(format!("{name}.disk")))?;
    let script = std::fs::canonicalize(SCRIPT).context(SCRIPT)?.display().to_string();
    for (leg, wanted) in route.kernels.iter().enumerate() {
        let what = match leg {
            0 => "first",
            _ if leg + 1 == route.kernels.len() => "last",
            _ => "next",
        };
        let kernel = kernels.get(wanted.as_str()).with_context(|| format!("{route}: no kernel {wanted}"))?;
        let label = format!("{name}-{}", leg + 1);
        let initrd = folder.join(format!("{label}.cpio"));
        let mode = if matches!(route.mode, Mode::Lazy) { "lazy" } else { "eager" };
        let test = Test {
            name: format!("crossing {what}"),
            program: "/bin/bash".into(),
            arguments: [&script, what, mode, &route.program].map(str::to_owned).to_vec(),
        };
        pack::initramfs(&initrd, programs, &Plan { tests: vec![test], ..Plan::default() }, kernel)?;
        let console = folder.join(format!("{label}.console"));
        let machine = guest::Machine { vmlinux: &kernel.vmlinux, initrd: &initrd, disk: Some(&disk.0) };
        let results = guest::run(wanted, &machine, &console)?;
        std::fs::remove_file(&initrd)?;
        let passed =
            results.wrong.is_none() && results.tests.iter().all(|(_, outcome)| *outcome == Outcome::Passed);
        if !passed || results.tests.is_empty() {
            let where_to = format!("leg {} under Linux {}: {}", leg + 1, kernel.version, console.display());
            return Ok(Err(where_to));
        }
        std::fs::remove_file(&console)?;
    }
    Ok(Ok(()))
}

/// A file with an ext4 file system, which goes with the value.
pub struct Disk(pub PathBuf);

impl Disk {
    pub fn make(path: PathBuf) -> Result<Self> {
        let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
        file.set_len(DISK)?;
        cmd::output(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is in the way of nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

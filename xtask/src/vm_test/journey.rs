//! What takes more than one machine: routes from kernel to kernel, power loss, two nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::fetch::Fetched;
use super::guest;
use super::kernels::Matrix;
use super::machine::Machine;
use super::nodes::Nodes;
use super::pack;
use super::plan::{Plan, Programs, Test};
use super::planted::Planted;
use super::power::Power;
use super::route::Route;
use super::systemd::{self, Systemd};
use crate::cmd;

const SCRIPTS: &str = "vm-test/guest";

pub enum Journey<'a> {
    Route(&'a Route),
    Power(&'a Power),
    Nodes(&'a Nodes),
    Systemd(&'a Systemd),
    Planted(&'a Planted),
}

/// Whether it came to a good end; if not, where it did not.
pub type Arrival = std::result::Result<(), String>;

impl<'a> Journey<'a> {
    /// With `planted` those of planted bugs, and otherwise all others.
    pub fn all(matrix: &'a Matrix, planted: bool) -> Vec<Self> {
        if planted {
            return matrix.planted.iter().map(Journey::Planted).collect();
        }
        let routes = matrix.routes.iter().map(Journey::Route);
        let powers = matrix.powers.iter().map(Journey::Power);
        let nodes = matrix.nodes.iter().map(Journey::Nodes);
        let systemds = matrix.systemds.iter().map(Journey::Systemd);
        routes.chain(powers).chain(nodes).chain(systemds).collect()
    }

    /// Why it cannot be made here, if so; `shares`: whether machines may see folders of this one.
    pub fn obstacle(&self, shares: bool) -> Option<&'static str> {
        match self {
            Self::Systemd(_) if !shares => Some("there is no virtiofsd here"),
            Self::Systemd(_) if !systemd::is_here() => Some("there is no systemd here"),
            _ => None,
        }
    }

    pub fn go(&self, ground: &Ground) -> Result<Arrival> {
        match self {
            Self::Route(route) => route.travel(ground),
            Self::Power(power) => power.lose(ground),
            Self::Nodes(nodes) => nodes.meet(ground),
            Self::Systemd(systemd) => systemd.boot(ground),
            Self::Planted(planted) => planted.find(ground),
        }
        .with_context(|| self.to_string())
    }
}

impl fmt::Display for Journey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => route.fmt(f),
            Self::Power(power) => power.fmt(f),
            Self::Nodes(nodes) => nodes.fmt(f),
            Self::Systemd(systemd) => systemd.fmt(f),
            Self::Planted(planted) => planted.fmt(f),
        }
    }
}

/// What all of them stand on.
#[derive(Clone)]
pub struct Ground<'a> {
    pub kernels: BTreeMap<&'a str, &'a Fetched>,
    pub programs: &'a Programs,
    /// With bugs in them.
    pub planted: Option<&'a Programs>,
    pub folder: &'a Path,
}

impl Ground<'_> {
    pub fn kernel(&self, name: &str) -> Result<&Fetched> {
        self.kernels.get(name).copied().with_context(|| format!("no kernel {name}"))
    }

    /// An initial file system with nothing to do but a script of vm-test/guest.
    pub fn pack(&self, label: &str, kernel: &Fetched, words: &[&str]) -> Result<PathBuf> {
        let (name, arguments) = words.split_first().context("a script")?;
        self.pack_test(label, kernel, Self::script(name, arguments)?)
    }

    /// A script of vm-test/guest with its arguments.
    pub fn script(name: &str, arguments: &[&str]) -> Result<Test> {
        let script = std::fs::canonicalize(format!("{SCRIPTS}/{name}")).context(SCRIPTS)?;
        let mut all = vec![script.display().to_string()];
        all.extend(arguments.iter().map(|word| (*word).to_owned()));
        Ok(Test {
            name: format!("journey {name}"),
            program: "/bin/bash".into(),
            arguments: all,
            on_host: false,
        })
    }

    /// An initial file system with nothing to do but `test`.
    pub fn pack_test(&self, label: &str, kernel: &Fetched, test: Test) -> Result<PathBuf> {
        let path = self.folder.join(format!("{label}.cpio"));
        pack::initramfs(&path, self.programs, &Plan { tests: vec![test], ..Plan::default() }, kernel)?;
        Ok(path)
    }

    /// Runs a machine to its end. Its console is kept if that was not a good one; its initial file system is not kept.
    pub fn run(&self, label: &str, who: &str, machine: &Machine) -> Result<Arrival> {
        let console = self.folder.join(format!("{label}.console"));
        let results = guest::run(who, machine, &console)?;
        std::fs::remove_file(machine.initrd)?;
        if !results.are_good() {
            return Ok(Err(format!("{who}: {}", console.display())));
        }
        std::fs::remove_file(&console)?;
        Ok(Ok(()))
    }
}

/// A name for files.
pub fn label(journey: &dyn fmt::Display) -> String {
    journey.to_string().replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
}

/// A file with an ext4 file system, which goes with the value.
pub struct Disk(pub PathBuf);

impl Disk {
    pub fn make(path: PathBuf, mib: u64) -> Result<Self> {
        let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
        file.set_len(mib << 20)?;
        // Without blocks that are kept for root: a disk is full for everybody.
        cmd::output(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is in the way of nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journey_that_needs_a_folder_of_this_machine_is_skipped_without() {
        let systemd = Systemd { kernel: "6.12".into() };
        assert!(Journey::Systemd(&systemd).obstacle(false).is_some_and(|why| why.contains("virtiofsd")));
        let nodes = Nodes { origin: "6.1".into(), target: "6.12".into(), short: false };
        assert_eq!(Journey::Nodes(&nodes).obstacle(false), None);
    }
}

//! Bugs that the tests under other kernels have to find: a ckptbpf that has one takes the place of the real one. The same program
//! has to pass while it is not told to have it.

use std::fmt;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::journey::{Arrival, Ground, label};
use super::machine::Machine;
use super::plan::{self, Programs};
use super::power::{Power, Room};
use crate::cmd::{self, cargo};

/// One row of kernels.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planted {
    /// As `ckpt-user/src/planted.rs` has them.
    pub bug: String,
    pub kernel: String,
    /// File of tests and function; the loss of power where there is none.
    pub test: Option<[String; 2]>,
    /// What is printed by who finds it, one of these.
    pub says: Vec<String>,
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self
            .test
            .as_ref()
            .map_or_else(|| "power loss".to_owned(), |[file, function]| format!("{file} {function}"));
        write!(f, "planted {} under {}, found by {by}", self.bug, self.kernel)
    }
}

/// Builds ckptbpf with all bugs in it, none of which it has unless it is told to.
pub fn build(programs: &Programs) -> Result<Programs> {
    let build =
        ["build", "--release", "-p", "ckpt-user", "--features", "planted-bugs", "--bin", "ckptbpf-planted"];
    cmd::run(&mut cargo(&build))?;
    Ok(Programs { ckptbpf: programs.release.join("ckptbpf-planted"), ..programs.clone() })
}

impl Planted {
    /// Whether the bug is found; it is no arrival if everything passes, or fails for something else.
    pub fn find(&self, ground: &Ground) -> Result<Arrival> {
        let healthy = ground.planted.context("no planted bugs")?;
        let name = label(self);
        let control = Ground { programs: healthy, ..ground.clone() };
        if let Err(why) = self.passes(&control, &format!("{name}-without"))? {
            return Ok(Err(format!("it fails without the bug, too: {why}")));
        }
        let programs = Programs { plant: Some(self.bug.clone()), ..healthy.clone() };
        let ground = Ground { programs: &programs, ..ground.clone() };
        if self.passes(&ground, &name)?.is_ok() {
            return Ok(Err("nobody has noticed".to_owned()));
        }
        let console = ground.folder.join(format!("{name}.console"));
        let printed = std::fs::read(&console).with_context(|| console.display().to_string())?;
        if !self.is_found_by(&String::from_utf8_lossy(&printed)) {
            return Ok(Err(format!("something else was found: {}", console.display())));
        }
        std::fs::remove_file(&console)?;
        Ok(Ok(()))
    }

    fn is_found_by(&self, printed: &str) -> bool {
        self.says.iter().any(|words| printed.contains(words.as_str()))
    }

    /// With the programs of `ground`; its console is called `name`, and stays if it fails.
    fn passes(&self, ground: &Ground, name: &str) -> Result<Arrival> {
        let Some([file, function]) = &self.test else {
            let (kernel, name) = (self.kernel.clone(), Some(name.to_owned()));
            return Power { kernel, room: Room::Enough, cuts: 3, short: None, name }.lose(ground);
        };
        let key = ("ckpt-tests".to_owned(), file.clone());
        let program = ground.programs.tests.get(&key).with_context(|| format!("no tests {file}"))?;
        let test = plan::Test::function(&format!("{file} {function}"), program, function);
        let kernel = ground.kernel(&self.kernel)?;
        let initrd = ground.pack_test(name, kernel, test)?;
        ground.run(name, &self.kernel, &Machine::new(&kernel.vmlinux, &initrd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_start_has_found_no_bug() {
        let planted = Planted {
            bug: "skipped-page".into(),
            kernel: "6.12".into(),
            test: None,
            says: vec!["victim: ".into(), "the program has ended".into()],
        };
        assert!(planted.is_found_by("the program has ended: victim: new: page 3"));
        assert!(!planted.is_found_by("VM-TEST failed dirty a 0.1 s: exit status 101\nno such file"));
    }
}

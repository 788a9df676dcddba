//! Bugs that the tests under other kernels have to find: a ckptbpf that has one takes the place of the real one.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::guest::{self, Outcome};
use super::journey::{Arrival, Ground, label};
use super::machine::Machine;
use super::pack;
use super::plan::{self, Plan, Programs};
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
    /// Whether the bug is found; it is no arrival if everything passes.
    pub fn find(&self, ground: &Ground) -> Result<Arrival> {
        let programs =
            Programs { plant: Some(self.bug.clone()), ..ground.planted.context("no planted bugs")?.clone() };
        let ground = Ground { programs: &programs, ..ground.clone() };
        let is_found = match &self.test {
            Some(test) => self.fails(&ground, test)?,
            None => {
                let name = label(self);
                let console = ground.folder.join(format!("{name}.console"));
                let power = Power {
                    kernel: self.kernel.clone(),
                    room: Room::Enough,
                    cuts: 3,
                    short: None,
                    name: Some(name),
                };
                // What the script says of checkpoints, and not just any failure.
                power.lose(&ground)?.is_err() && says(&console, &["not all of it is whole", "was told of"])?
            }
        };
        Ok(if is_found { Ok(()) } else { Err("nobody has noticed".to_owned()) })
    }

    fn fails(&self, ground: &Ground, [file, function]: &[String; 2]) -> Result<bool> {
        let key = ("ckpt-tests".to_owned(), file.clone());
        let program = ground.programs.tests.get(&key).with_context(|| format!("no tests {file}"))?;
        let test = plan::Test::function(&format!("{file} {function}"), program, function);
        let plan = Plan { tests: vec![test], ..Plan::default() };
        let kernel = ground.kernel(&self.kernel)?;
        let [initrd, console] =
            ["cpio", "console"].map(|kind| ground.folder.join(format!("{}.{kind}", label(self))));
        pack::initramfs(&initrd, ground.programs, &plan, kernel)?;
        let results = guest::run(&self.kernel, &Machine::new(&kernel.vmlinux, &initrd), &console)?;
        std::fs::remove_file(&initrd)?;
        ensure!(results.wrong.is_none(), "{}: {}", console.display(), results.wrong.unwrap_or_default());
        remove(&console)?;
        Ok(matches!(&results.tests[..], [(_, Outcome::Failed)]))
    }
}

/// Whether one of `words` was printed; what was printed goes then.
fn says(console: &Path, words: &[&str]) -> Result<bool> {
    let printed = String::from_utf8_lossy(&std::fs::read(console)?).into_owned();
    let is_said = words.iter().any(|word| printed.contains(word));
    if is_said {
        remove(console)?;
    }
    Ok(is_said)
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).with_context(|| path.display().to_string())
}

//! Power loss: a machine is cut off while checkpoints are written, again and again. What the next one finds on its disks has to
//! be whole, and of what the user was told nothing may be missing.
//!
//! ```text
//! boot ─▶ verify, list: the newest is not older than what was told ─▶ restart ─▶ checkpoints are told ─▶ cut off ┐
//!   ▲                                                                                                            │
//!   └──────────────────────── the same disks: /mnt with the images, /files with what the program writes ◀────────┘
//! ```

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::guest::{self, Report, SILENCE};
use super::journey::{Arrival, Disk, Ground, label};
use super::machine::{LONGEST, Machine, Next, Running};

/// How long after a checkpoint that was told the machine may be cut off: some checkpoints are made in it, and merged.
const LATEST: Duration = Duration::from_millis(2500);
/// What power.sh says when there was no room for a checkpoint.
const NO_ROOM: &str = "power: no room for a checkpoint";

/// One row of kernels.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    pub kernel: String,
    pub room: Room,
    pub cuts: u32,
    /// In the short form.
    pub short: Option<u32>,
    /// Its files, if not by what it is.
    #[serde(skip)]
    pub name: Option<String>,
}

/// Of the disk with the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Room {
    Enough,
    /// It is full, and emptied, and full again.
    Full,
}

impl Room {
    fn word(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = match self.room {
            Room::Enough => "",
            Room::Full => " with a full disk",
        };
        write!(f, "power loss {} times under {}{disk}", self.cuts, self.kernel)
    }
}

impl Power {
    pub fn lose(&self, ground: &Ground) -> Result<Arrival> {
        let name = self.name.clone().unwrap_or_else(|| label(self));
        let images = Disk::make(ground.folder.join(format!("{name}.images")), 192)?;
        let files = Disk::make(ground.folder.join(format!("{name}.files")), 64)?;
        let kernel = ground.kernel(&self.kernel)?;
        let initrd = ground.pack(&name, kernel, &["power.sh", self.room.word()])?;
        let console = ground.folder.join(format!("{name}.console"));
        let mut seed = match std::env::var("CKPTBPF_SEED") {
            Ok(given) => given.parse().context("CKPTBPF_SEED")?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        println!("{self}: CKPTBPF_SEED={seed}");
        let mut told = 0;
        for life in 0..=self.cuts {
            let leg = match life {
                0 => "first",
                last if last == self.cuts => "last",
                _ => "next",
            };
            let disks = [images.0.as_path(), files.0.as_path()];
            let words = [("leg", leg.to_owned()), ("told", told.to_string())];
            let machine = Machine { disks: &disks, words: &words, ..Machine::new(&kernel.vmlinux, &initrd) };
            let ended = if leg == "last" {
                if guest::run(&self.kernel, &machine, &console)?.are_good() { Ok(told) } else { Err(()) }
            } else {
                let delay = Duration::from_micros(random(&mut seed) % u64::try_from(LATEST.as_micros())?);
                // Every second life of a disk that is to be full ends once it was: a cut before that shows nothing of it.
                let is_filled = self.room == Room::Full && life % 2 == 0;
                cut_off(machine.start(&console)?, told, delay, is_filled)?
            };
            match ended {
                Ok(newest) => told = newest,
                Err(()) => {
                    std::fs::remove_file(&initrd)?;
                    return Ok(Err(format!("after {life} cuts: {}", console.display())));
                }
            }
            if leg != "last" {
                println!("{:>8}: cut off, checkpoint {told} was told", self.kernel);
            }
        }
        std::fs::remove_file(&initrd)?;
        std::fs::remove_file(&console)?;
        Ok(Ok(()))
    }
}

/// Watches a machine until it has told of a newer checkpoint than `told`, or with `is_filled` until there was no room for one, and for
/// `delay` after that; the newest that it has told of.
fn cut_off(
    mut running: Running,
    mut told: u64,
    delay: Duration,
    is_filled: bool,
) -> Result<std::result::Result<u64, ()>> {
    let mut report = Report::default();
    let mut end = None;
    let mut is_off = false;
    loop {
        if !is_off && end.is_some_and(|end| Instant::now() >= end) {
            running.cut_off()?;
            is_off = true;
        }
        let left = end.filter(|_| !is_off).map(|end| end.saturating_duration_since(Instant::now()));
        match running.next(left.unwrap_or(SILENCE))? {
            Next::Line(line) => {
                report.see(&line);
                let newer = checkpoint(&line).filter(|id| *id > told);
                told = newer.unwrap_or(told);
                let has_come = if is_filled { line == NO_ROOM } else { newer.is_some() };
                if has_come {
                    end.get_or_insert(Instant::now() + delay);
                }
            }
            // The time has come.
            Next::Silence if left.is_some() => {}
            Next::Silence => bail!("the machine says nothing for {} s", SILENCE.as_secs()),
            Next::Late => bail!("the machine has not ended within {} s", LONGEST.as_secs()),
            // What it still had to say is said.
            Next::End if is_off => break,
            Next::End => return Ok(Err(())),
        }
        if report.wrong.is_some() || report.has_failed() {
            return Ok(Err(()));
        }
    }
    running.status().context("the end of QEMU")?;
    Ok(Ok(told))
}

/// The number in `ckptbpf: checkpoint 5 (delta): …`.
fn checkpoint(line: &str) -> Option<u64> {
    let (number, rest) = line.strip_prefix("ckptbpf: checkpoint ")?.split_once(' ')?;
    rest.starts_with('(').then(|| number.parse().ok())?
}

/// SplitMix64; <https://prng.di.unimi.it/splitmix64.c>.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a machine that prints so and does not end, or ends with `exit`.
    fn watched(prints: &str, is_filled: bool) -> std::result::Result<u64, ()> {
        let console = std::env::temp_dir().join(format!("ckptbpf-power-{}", std::process::id()));
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("{prints}; exec sleep 1000")]);
        let running = Running::of(command, &console, Duration::from_secs(60)).unwrap();
        let became = cut_off(running, 0, Duration::ZERO, is_filled).unwrap();
        std::fs::remove_file(console).unwrap();
        became
    }

    #[test]
    fn a_disk_that_is_to_be_full_has_refused_a_checkpoint_before_it_is_cut_off() {
        let told = "echo 'ckptbpf: checkpoint 1 (full): 281 pages'";
        assert_eq!(watched(told, false), Ok(1));
        assert_eq!(watched(&format!("{told}; exit 1"), true), Err(()));
        assert_eq!(watched(&format!("{told}; echo '{NO_ROOM}'"), true), Ok(1));
        let script = include_str!("../../../vm-test/guest/power.sh");
        assert!(script.contains(&NO_ROOM.replace("power", "$name")));
    }

    #[test]
    fn what_was_told_is_understood() {
        let line = "ckptbpf: checkpoint 12 (delta): 281 pages, 1.1 MiB stored, frozen 4.2 ms, 105 ms in all";
        assert_eq!(checkpoint(line), Some(12));
        assert_eq!(checkpoint("ckptbpf: checkpoint 13 failed: No space left on device"), None);
        assert_eq!(checkpoint("ckptbpf: checkpoint 1"), None);
    }
}

//! Who takes checkpoints, one file each: what they have in common.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::case::Case;
use super::stage::{Room, Stage};
use super::victim::Victim;

/// What a checkpoint is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing.
    Full,
    /// The one before.
    Delta,
}

/// A checkpoint that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    pub kind: Kind,
    /// From the request until it is durable.
    pub durable_us: u64,
    /// How long the program was stopped, as who has stopped it tells.
    pub told_us: Option<u64>,
    pub bytes_stored: u64,
    /// Pages in it.
    pub pages: Option<u64>,
    /// Time on processors outside of the program.
    pub cpu_us: Option<u64>,
}

/// A program, and who takes its checkpoints.
pub trait Contender {
    fn victim(&mut self) -> &mut Victim;

    /// Takes one; none by who takes none.
    ///
    /// # Errors
    /// It has failed: why.
    fn checkpoint(&mut self) -> Result<Option<Taken>>;

    /// Removes what the last one has left and nobody needs.
    ///
    /// # Errors
    /// It cannot be removed.
    fn forget(&mut self) -> Result<()> {
        Ok(())
    }

    /// The most memory that it has had outside of the program.
    fn peak_kib(&self) -> Option<u64> {
        None
    }
}

/// A program that is left alone.
pub struct Native {
    victim: Victim,
    _room: Room,
}

impl Native {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(stage: &Stage, case: &Case) -> Result<Self> {
        let room = stage.room("native")?;
        let victim = Victim::start(&mut stage.long("env"), stage, case, &room)?;
        Ok(Self { victim, _room: room })
    }
}

impl Contender for Native {
    fn victim(&mut self) -> &mut Victim {
        &mut self.victim
    }

    fn checkpoint(&mut self) -> Result<Option<Taken>> {
        Ok(None)
    }
}

/// Whole microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Makes all files of a folder durable; their sizes together.
///
/// # Errors
/// One cannot be read or synced.
pub fn make_durable(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        file.sync_all().with_context(|| path.display().to_string())?;
        bytes += file.metadata()?.len();
    }
    File::open(folder)?.sync_all()?;
    Ok(bytes)
}

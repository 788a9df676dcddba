//! `ckptbpf prune`: merge and delete old generations.

use std::path::PathBuf;

use clap::Args;

use super::{Status, print};
use crate::job::prune::{Pruned, prune};
use crate::job::terminal::{bytes, say};

/// Merge and delete old checkpoints; for a job that does not run (one that runs does it itself)
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!("ckptbpf prune ckpt_count", "ckptbpf prune --keep 1 ckpt_count"))]
pub struct Prune {
    /// How many restartable checkpoints to keep [default: what the job recorded, else 3]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    keep: Option<usize>,
    /// Take the directory over from a job on another host, of which you know that it has ended
    #[arg(long)]
    take_over: bool,
    /// The job's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Prune {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        super::log_level(0);
        let Pruned { notes, kept, deleted, bytes_freed } = prune(&self.dir, self.keep, self.take_over)?;
        notes.iter().for_each(|note| say(note));
        let text = format!("kept {kept}, deleted {deleted}, freed {}\n", bytes(bytes_freed));
        print::print(&text)?;
        Ok(Status::DONE)
    }
}

//! `ckptbpf prune`: merge and delete old generations.

use std::path::PathBuf;

use clap::Args;

use super::{Status, print};
use crate::image::PruneReport;
use crate::job::prune::prune;
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
        let (report, notes) = prune(&self.dir, self.keep, self.take_over)?;
        notes.iter().chain(&report.damaged).for_each(|note| say(note));
        print::print(&text(&report))?;
        Ok(Status::DONE)
    }
}

fn text(report: &PruneReport) -> String {
    let mut text = format!("kept {}", report.kept.len());
    if let Some(id) = report.merged {
        text.push_str(&format!(" (merged older ones into {id})"));
    }
    let freed = match u64::try_from(report.bytes_freed) {
        Ok(freed) => format!("freed {}", bytes(freed)),
        Err(_) => format!("took {} more", bytes(report.bytes_freed.unsigned_abs())),
    };
    text.push_str(&format!(", deleted {}, {freed}", report.deleted.len()));
    if !report.in_use.is_empty() {
        text.push_str(&format!("; {} left because they are in use", report.in_use.len()));
    }
    text.push('\n');
    text
}

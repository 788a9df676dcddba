//! `ckptbpf verify`: can all of it be restarted from?

use std::path::PathBuf;

use clap::Args;

use super::{Status, print};
use crate::image::{self, VerifiedGeneration};
use crate::job::bar::Bar;

/// Read every byte; succeed only if all of it can be restarted from
///
/// Exit status: 0 everything is whole, 1 something is damaged, 125 it cannot be read at all.
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!("ckptbpf verify ckpt_count", "ckptbpf verify ckpt_count/000017.ckpt && echo whole"))]
pub struct Verify {
    /// A job's directory, or one checkpoint's file (with those it inherits from)
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        let _as = super::as_owner(&self.path)?;
        let mut bar = Bar::new("verify");
        let report = image::verify(&self.path, |done, total| bar.set(done, total))?;
        drop(bar);
        if report.generations.is_empty() {
            anyhow::bail!("{} holds no checkpoint; is it the right directory?", self.path.display());
        }
        let mut text: String = report.generations.iter().map(line).collect();
        let whole = report.all_restartable();
        text.push_str(if whole { "all of it can be restarted from\n" } else { "damaged\n" });
        print::print(&text)?;
        Ok(if whole { Status::DONE } else { Status::NO })
    }
}

fn line(found: &VerifiedGeneration) -> String {
    let state = match &found.damage {
        Some(damage) => damage.clone(),
        None if found.restartable => "whole".into(),
        None => "whole, but an ancestor is missing or damaged".into(),
    };
    format!("{}: {state}\n", found.path.display())
}

//! `ckptbpf restart`: run a program again from a checkpoint.

use std::path::PathBuf;

use clap::Args;

use super::Status;
use super::args::{JobArgs, RestartArgs};
use crate::job::options::RestartOptions;
use crate::job::{self, ended::Ended, way::Way};

/// Run a program again from a checkpoint
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!(
    "ckptbpf restart --lazy ckpt_count",
    "sudo ckptbpf restart --at 17 -d /scratch/me/branch /scratch/me/run7",
), mut_arg("dir", |dir| dir.help("Where new checkpoints go [default: where the old ones are]")))]
pub struct Restart {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    restart: RestartArgs,
    /// The job's directory, or one checkpoint's file
    #[arg(value_name = "DIR|FILE")]
    source: PathBuf,
}

impl Restart {
    pub(super) fn options(self) -> RestartOptions {
        self.restart.options(self.job.options(), self.source)
    }

    pub(super) fn run(self, way: impl Fn() -> Way) -> anyhow::Result<Status> {
        self.ended(way).map(Status::from)
    }

    /// Runs the program to its end.
    pub(super) fn ended(self, way: impl Fn() -> Way) -> anyhow::Result<Ended> {
        super::refuse_remote(&self.source)?;
        if self.restart.at.is_some() && self.source.is_file() {
            anyhow::bail!("--at picks a checkpoint of a directory, and {} is a file", self.source.display());
        }
        let options = self.options();
        super::log_level(options.job.verbose);
        job::restart(&options, &way())
    }
}

//! `ckptbpf run`: restart if there is a checkpoint, launch otherwise: one job script for both.

use std::ffi::OsString;

use clap::Args;

use super::Status;
use super::args::{JobArgs, RestartArgs};
use super::launch::{LaunchArgs, launch_options};
use crate::job::{self, way::Way};

/// Restart if DIR holds a checkpoint, launch otherwise
#[derive(Debug, Clone, Args)]
#[command(override_usage = "ckptbpf run [OPTIONS] [--] PROGRAM [ARG]...", after_help = super::examples!(
    "ckptbpf run -i 10m -d $SCRATCH/job -- ./simulate input.dat",
    "ckptbpf run -i 1h --lazy --ckpt-signal USR1 --exit-after-ckpt -- ./simulate input.dat",
))]
pub struct Run {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    launch: LaunchArgs,
    #[command(flatten)]
    restart: RestartArgs,
    /// The program and its arguments; a restart goes on with those of the checkpoint
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    program: Vec<OsString>,
}

impl Run {
    pub(super) fn run(self, way: impl Fn() -> Way) -> anyhow::Result<Status> {
        let mut launch = launch_options(self.job, self.launch, self.program);
        launch.detach = self.restart.detach;
        super::log_level(launch.job.verbose);
        let ended = match job::run::choose(&launch, self.restart.at)? {
            Some(dir) => {
                let mut job = launch.job;
                // The directory is where it restarts from; new checkpoints go there too.
                job.dir = None;
                job::restart(&self.restart.options(job, dir), &way())?
            }
            None => job::launch(&launch, &way())?,
        };
        Ok(ended.into())
    }
}

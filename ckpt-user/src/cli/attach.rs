//! `ckptbpf attach`: supervise a program that is already running.

use clap::Args;

use super::Status;
use super::args::JobArgs;
use crate::job::{self, options::AttachOptions, way::Way};

/// Supervise a program that is already running
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!(
    "sudo ckptbpf attach -i 60 4711",
    "ckptbpf attach -d ckpt_count $(pidof count)",
))]
pub struct Attach {
    #[command(flatten)]
    job: JobArgs,
    /// The first process of the program
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
}

impl Attach {
    pub(super) fn run(self, way: impl Fn() -> Way) -> anyhow::Result<Status> {
        let options = AttachOptions { job: self.job.options(), pid: self.pid };
        super::log_level(options.job.verbose);
        Ok(job::attach(&options, &way())?.into())
    }
}

//! `ckptbpf launch`: run a program, and take checkpoints of it.

use std::ffi::OsString;

use clap::Args;

use super::Status;
use super::args::JobArgs;
use crate::job::ended::Ended;
use crate::job::way::Way;
use crate::job::{self, options::LaunchOptions};
use crate::machine::Baseline;

/// Options that only a launch has.
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Move the checkpoints that DIR holds to DIR/old-N, and begin anew
    #[arg(long)]
    pub new: bool,
    /// Run the program as this user [default under sudo: who called it]; root keeps root
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Tell the program's C library (glibc) of no more than this level of x86-64: it can then be restarted on any CPU of
    /// that level [default: all that the CPU has]
    #[arg(long, value_name = "LEVEL")]
    pub cpu_baseline: Option<Baseline>,
}

/// Run a program, and take checkpoints of it
#[derive(Debug, Clone, Args)]
#[command(override_usage = "ckptbpf launch [OPTIONS] [--] PROGRAM [ARG]...", after_help = super::examples!(
    "sudo ckptbpf launch -i 10 ./count",
    "ckptbpf launch -i 5m -d /scratch/me/run7 -- python3 train.py --epochs 90",
))]
pub struct Launch {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    launch: LaunchArgs,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    program: Vec<OsString>,
}

impl Launch {
    pub(super) fn options(self) -> LaunchOptions {
        launch_options(self.job, self.launch, self.program)
    }

    pub(super) fn run(self, way: &Way) -> anyhow::Result<Status> {
        self.ended(way).map(Status::from)
    }

    /// Runs the program to its end.
    pub(super) fn ended(self, way: &Way) -> anyhow::Result<Ended> {
        let options = self.options();
        super::log_level(options.job.verbose);
        job::launch(&options, way)
    }
}

pub(super) fn launch_options(job: JobArgs, launch: LaunchArgs, program: Vec<OsString>) -> LaunchOptions {
    let LaunchArgs { new, user, cpu_baseline } = launch;
    LaunchOptions { job: job.options(), new, user, cpu_baseline, detach: false, program }
}

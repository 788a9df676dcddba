//! `ckptbpf slurm`: what is for jobs of Slurm.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::args::{ClocksArg, FilesArg, JobArgs};
use super::{Status, words};
use crate::job::options::SlurmOptions;
use crate::job::slurm::{self, decide::Todo};
use crate::job::way::Way;
use crate::machine::Baseline;

/// In a job of Slurm
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!(
    "ckptbpf slurm run -i 10m -- ./simulate input.dat",
    "ckptbpf slurm run --no-requeue -- python3 train.py --epochs 90",
))]
pub struct Slurm {
    #[command(subcommand)]
    verb: SlurmVerb,
}

#[derive(Debug, Clone, Subcommand)]
enum SlurmVerb {
    Run(Box<Run>),
}

/// The one line in a job script: launch, or restart where the job has checkpoints; checkpoint before the job's end, and queue it again
#[derive(Debug, Clone, Args)]
#[command(override_usage = "ckptbpf slurm run [OPTIONS] [--] PROGRAM [ARG]...", after_help = super::examples!(
    "ckptbpf slurm run -i 10m -- ./simulate input.dat",
    "ckptbpf slurm run --from 4711 -i 10m -- ./simulate input.dat",
))]
#[command(mut_arg("exit_after_ckpt", |arg| arg.hide(true)))]
#[command(mut_arg("dir", |arg| arg.help(
    "The job's directory [default: $CKPTBPF_DIR, else ckptbpf/JOB where it was submitted, JOB being its number, or ARRAY_TASK]",
)))]
#[command(mut_arg("ckpt_signal", |arg| arg.help(
    "On this signal a checkpoint is taken that is also the end, as on TERM [default: USR1]",
)))]
pub struct Run {
    #[command(flatten)]
    job: JobArgs,
    /// Go on from this directory, or from that of the job with this number, where this job has no checkpoints of its own
    #[arg(long, value_name = "DIR|JOB")]
    from: Option<OsString>,
    /// Do not queue the job again after a checkpoint that is the end; exit status 85
    #[arg(long)]
    no_requeue: bool,
    /// After a restart run at once, and bring the memory in behind the running program
    #[arg(long)]
    lazy: bool,
    /// What a restart does about files that the job has written to since the checkpoint
    #[arg(long, value_name = "HOW", default_value = "rollback")]
    files: FilesArg,
    /// What a restart does where the program's clocks cannot go on where they were
    #[arg(long, value_name = "HOW", default_value = "go-on")]
    clocks: ClocksArg,
    /// Tell the program's C library (glibc) of no more than this level of x86-64, as all nodes have it
    #[arg(long, value_name = "LEVEL")]
    cpu_baseline: Option<Baseline>,
    /// The program and its arguments; a restart goes on with those of the checkpoint
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    program: Vec<OsString>,
}

impl Slurm {
    pub(super) fn run(self, way: impl Fn() -> Way) -> anyhow::Result<Status> {
        match self.verb {
            SlurmVerb::Run(run) => run.run(way),
        }
    }
}

impl Run {
    fn options(self) -> SlurmOptions {
        let Self { job, from, no_requeue, lazy, files, clocks, cpu_baseline, program } = self;
        let (job, files, clocks) = (job.options(), files.into(), clocks.into());
        SlurmOptions { job, lazy, files, clocks, cpu_baseline, from, requeue: !no_requeue, program }
    }

    fn run(self, way: impl Fn() -> Way) -> anyhow::Result<Status> {
        let options = self.options();
        super::log_level(options.job.verbose);
        // A worker is asked for what has been decided here.
        let asked = |todo: &Todo| match todo {
            Todo::Launch(options) => way().asking(words::of_launch(options)),
            Todo::Restart(options) => way().asking(words::of_restart(options)),
            Todo::Nothing => way(),
        };
        slurm::run(&options, &asked).map(Status)
    }
}

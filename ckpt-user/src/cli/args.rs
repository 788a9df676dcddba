//! Options that several verbs share, and their way into `job::options`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use super::{duration, signal};
use crate::job::coordinator::Name;
use crate::job::options::{ClocksPolicy, Codec, FilesPolicy, JobOptions, RestartOptions};
use crate::track::backend::Backend;
use crate::track::reconcile::Lie;

/// Options of every verb that supervises a program.
#[derive(Debug, Clone, Args)]
pub struct JobArgs {
    /// Time between checkpoints: seconds (fractions allowed), 10s, 5m or 2h; 0 is off [default: what the job
    /// recorded, else on request only]
    #[arg(short, long, value_name = "SECS", value_parser = duration::parse)]
    pub interval: Option<Duration>,
    /// The job's directory [default: $CKPTBPF_DIR, else ./ckpt_<program>]
    #[arg(short, long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How many restartable checkpoints to keep [default: what the job recorded, else 3]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub keep: Option<usize>,
    /// End the program with the checkpoint that --ckpt-signal takes (without one: with the next); exit status 85
    #[arg(long)]
    pub exit_after_ckpt: bool,
    /// Take a checkpoint when ckptbpf gets this signal, which the program then does not see
    #[arg(long, value_name = "SIG", value_parser = signal::parse)]
    pub ckpt_signal: Option<i32>,
    /// How to store memory [default: what the job recorded, else lz4]
    #[arg(long, value_name = "CODEC")]
    pub compress: Option<CodecArg>,
    /// Take the directory over from a job on another host, of which you know that it has ended
    #[arg(long)]
    pub take_over: bool,
    /// -v: a line a checkpoint; -vv: phases, and the log of the eBPF programs
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    #[arg(long, hide = true, value_name = "COORDINATOR", value_parser = coordinator)]
    dmtcp: Option<String>,
    /// SIGTERM is a checkpoint and the end: what `slurm run` asks of a worker
    #[arg(long, hide = true)]
    term_ends: bool,
    #[arg(long, hide = true)]
    no_bpf: bool,
    #[arg(long, hide = true, value_name = "HOW")]
    track: Option<TrackArg>,
    #[arg(long, hide = true, value_name = "N")]
    ring_bytes: Option<u32>,
    #[arg(long, hide = true, value_name = "HOW")]
    fault_log: Option<FaultLogArg>,
}

impl JobArgs {
    /// As plain data.
    pub fn options(self) -> JobOptions {
        JobOptions {
            interval: self.interval,
            dir: self.dir,
            keep: self.keep,
            exit_after_ckpt: self.exit_after_ckpt,
            ckpt_signal: self.ckpt_signal,
            term_ends: self.term_ends,
            compress: self.compress.map(Into::into),
            verbose: self.verbose,
            take_over: self.take_over,
            dmtcp: self.dmtcp,
            no_bpf: self.no_bpf,
            track: self.track.map(Into::into),
            ring_bytes: self.ring_bytes,
            fault_log: self.fault_log.map(Into::into),
        }
    }
}

/// `--dmtcp`, by which the names of DMTCP call the verbs.
fn coordinator(text: &str) -> Result<String, String> {
    Name::parse(text).map(|name| name.to_string()).ok_or_else(|| format!("'{text}' is no coordinator's name"))
}

/// Options of the verbs that can restart.
#[derive(Debug, Clone, Args)]
pub struct RestartArgs {
    /// Run at once, and bring the memory in behind the running program
    #[arg(long)]
    pub lazy: bool,
    /// Exactly this checkpoint, instead of the newest that is whole
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub at: Option<u64>,
    /// What to do about files that the job has written to since the checkpoint
    #[arg(long, value_name = "HOW", default_value = "rollback")]
    pub files: FilesArg,
    /// What to do where the program's clocks cannot go on where they were
    #[arg(long, value_name = "HOW", default_value = "go-on")]
    pub clocks: ClocksArg,
    /// Return once the program runs
    #[arg(long)]
    pub detach: bool,
    /// One line of JSON to standard error once the program runs
    #[arg(long)]
    pub json: bool,
    #[arg(long, hide = true, value_name = "FILE")]
    hold_fill: Option<PathBuf>,
    #[arg(long, hide = true)]
    foreign_vdso: bool,
    #[arg(long, hide = true)]
    foreign_xsave: bool,
}

impl RestartArgs {
    /// As plain data.
    pub fn options(self, job: JobOptions, source: PathBuf) -> RestartOptions {
        RestartOptions {
            job,
            lazy: self.lazy,
            at: self.at,
            files: self.files.into(),
            clocks: self.clocks.into(),
            detach: self.detach,
            json: self.json,
            source,
            hold_fill: self.hold_fill,
            foreign_vdso: self.foreign_vdso,
            foreign_xsave: self.foreign_xsave,
        }
    }
}

/// `--compress`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CodecArg {
    /// LZ4, or raw where that does not pay.
    Lz4,
    /// Raw.
    None,
}

impl From<CodecArg> for Codec {
    fn from(codec: CodecArg) -> Self {
        match codec {
            CodecArg::Lz4 => Self::Lz4,
            CodecArg::None => Self::None,
        }
    }
}

/// `--files`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FilesArg {
    /// Cut them back to their size at the checkpoint; what is cut stays in DIR/cut.
    Rollback,
    /// Leave them.
    Keep,
    /// Compare only; any difference is an error.
    Check,
}

impl From<FilesArg> for FilesPolicy {
    fn from(files: FilesArg) -> Self {
        match files {
            FilesArg::Rollback => Self::Rollback,
            FilesArg::Keep => Self::Keep,
            FilesArg::Check => Self::Check,
        }
    }
}

/// `--clocks`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ClocksArg {
    /// Refuse it, unless they have only gone on since the checkpoint.
    GoOn,
    /// Let them jump forward.
    Jump,
}

impl From<ClocksArg> for ClocksPolicy {
    fn from(clocks: ClocksArg) -> Self {
        match clocks {
            ClocksArg::GoOn => Self::GoOn,
            ClocksArg::Jump => Self::Jump,
        }
    }
}

/// `--track`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TrackArg {
    PagemapScan,
    SoftDirty,
    Full,
}

impl From<TrackArg> for Backend {
    fn from(track: TrackArg) -> Self {
        match track {
            TrackArg::PagemapScan => Self::PagemapScan,
            TrackArg::SoftDirty => Self::SoftDirty,
            TrackArg::Full => Self::Full,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FaultLogArg {
    Silent,
    Wild,
}

impl From<FaultLogArg> for Lie {
    fn from(lie: FaultLogArg) -> Self {
        match lie {
            FaultLogArg::Silent => Self::Silent,
            FaultLogArg::Wild => Self::Wild,
        }
    }
}

//! `ckptbpf checkpoint`: take one now.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::{Status, print};
use crate::job::bar::Written;
use crate::job::beside::{self, Beside};
use crate::job::options::CheckpointOptions;
use crate::job::registry::Target;
use crate::job::request::{Taker, ask, jobs, taker};
use crate::job::terminal::{checkpoint_line, say};
use crate::job::way::{Way, by_daemon};
use crate::job::{self};

/// Take a checkpoint now; returns when it is durable
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!(
    "ckptbpf checkpoint ckpt_count",
    "ckptbpf checkpoint --kill --json 4711",
))]
pub struct Checkpoint {
    /// End the program with it, both in one instant
    #[arg(long)]
    kill: bool,
    /// Where to, for a PID that nobody supervises [default: ./ckpt_<program>]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// One line of JSON
    #[arg(long)]
    json: bool,
    /// A job's directory, or any process of it; a PID without a supervisor gets one full checkpoint
    #[arg(value_name = "DIR|PID")]
    target: OsString,
}

impl Checkpoint {
    pub(super) fn run(self, way: impl Fn() -> Way) -> anyhow::Result<Status> {
        super::log_level(0);
        let target = Target::parse(&self.target);
        let done = match taker(&jobs(&target), &target, self.dir, self.kill)? {
            Taker::Supervisor(live) => {
                let _written = Written::watch(live.entry.dir.clone());
                ask(&live, self.kill)?
            }
            Taker::Once(options) => {
                let (pid, way) = (options.pid, way());
                if let Some(ended) = by_daemon(&way, None, &mut || ()) {
                    return Ok(ended?.into());
                }
                say(&format!(
                    "nobody supervises {pid}: one full checkpoint (to take more of them: ckptbpf attach {pid})"
                ));
                match beside::place(pid, &way)? {
                    Beside::As(pid) => job::checkpoint_once(&CheckpointOptions { pid, ..options }, &way)?,
                    Beside::Ended(ended) => return Ok(ended.into()),
                }
            }
        };
        if self.json {
            print::json(&serde_json::to_value(&done)?)?;
        } else {
            let end = if done.killed { "; the program was ended with it" } else { "" };
            print::print(&format!("{}{end}\n", checkpoint_line(&done)))?;
        }
        Ok(Status::DONE)
    }
}

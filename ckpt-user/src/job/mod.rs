//! The supervisor of one job, and its directory.
//!
//! ```text
//! cli ─▶ options ─▶ launch │ restart │ attach ─▶ Ended ─▶ exit status
//!                     │
//!                     ├─ identity: whose program            directory, record, lease: whose directory
//!                     ├─ registry + control: status and checkpoint find and ask the job
//!                     └─ interval, retention (pure); events, terminal (what is told)
//! ```

pub mod checkpoint;
pub mod control;
pub mod describe;
pub mod directory;
pub mod ended;
pub mod events;
pub mod identity;
pub mod in_freeze;
pub mod interval;
pub mod lease;
pub mod options;
pub mod process;
pub mod prune;
pub mod record;
pub mod registry;
pub mod request;
pub mod residue;
pub mod retention;
pub mod run;
pub mod runtime_dir;
pub mod terminal;
pub mod tracer;

use ended::Ended;

/// Runs a program and supervises it.
pub fn launch(options: options::LaunchOptions) -> anyhow::Result<Ended> {
    drop(options);
    anyhow::bail!("launch is not part of this build")
}

/// Runs a program again from a checkpoint and supervises it.
pub fn restart(options: options::RestartOptions) -> anyhow::Result<Ended> {
    drop(options);
    anyhow::bail!("restart is not part of this build")
}

/// Supervises a program that runs.
pub fn attach(options: options::AttachOptions) -> anyhow::Result<Ended> {
    drop(options);
    anyhow::bail!("attach is not part of this build")
}

/// Takes one full checkpoint of a program that nobody supervises.
pub fn checkpoint_once(options: options::CheckpointOptions) -> anyhow::Result<control::CheckpointDone> {
    drop(options);
    anyhow::bail!("a checkpoint of a program without a supervisor is not part of this build")
}

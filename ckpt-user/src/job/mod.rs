//! The supervisor of one job, and its directory.
//!
//! ```text
//! cli ─▶ options ─▶ launch │ restart │ attach ─▶ Ended ─▶ exit status
//!                     │
//!                     ├─ namespace + stand_in: a pid namespace of the program's own, where its ids are in use
//!                     ├─ here: what a user's program does without where there can be none
//!                     ├─ slurm: in a batch job, what there is besides: decide before, a clock beside, queue again after
//!                     ├─ identity: whose program            directory, record, lease: whose directory
//!                     ├─ registry + control: status and checkpoint find and ask the job
//!                     ├─ interval, retention (pure); events, terminal (what is told)
//!                     └─ pointer, coordinator: what scripts of DMTCP find of it
//! ```

pub mod attach;
pub mod bar;
pub mod beside;
pub mod checkpoint;
pub mod control;
pub mod coordinator;
pub mod describe;
pub mod directory;
pub mod ended;
pub mod events;
pub mod files;
pub mod heir;
mod here;
pub mod identity;
pub mod in_freeze;
pub mod interval;
mod known_files;
pub mod launch;
mod lazy;
pub mod lease;
mod maker;
mod moved;
pub mod namespace;
pub mod options;
mod others;
pub mod parent;
pub mod pointer;
pub mod process;
pub mod prune;
pub mod record;
pub mod registry;
mod remade;
pub mod request;
pub mod residue;
pub mod restart;
pub mod retention;
mod rights;
mod rounds;
pub mod run;
pub mod runtime_dir;
pub mod signals;
pub mod slurm;
pub mod stand_in;
pub mod start;
pub mod supervisor;
mod survivors;
mod sync;
pub mod terminal;
pub mod tracer;
pub mod way;

pub use attach::{attach, checkpoint_once};
pub use launch::launch;
pub use restart::restart;

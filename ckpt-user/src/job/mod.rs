//! The supervisor of one job, and its directory.

pub mod control;
pub mod directory;
pub mod ended;
pub mod events;
pub mod identity;
pub mod interval;
pub mod lease;
pub mod options;
pub mod process;
pub mod record;
pub mod registry;
pub mod retention;
pub mod runtime_dir;
pub mod terminal;

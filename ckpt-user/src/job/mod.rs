//! The supervisor of one job, and its directory.

pub mod directory;
pub mod ended;
pub mod identity;
pub mod lease;
pub mod options;
pub mod process;
pub mod record;

//! What has changed since the last committed generation.
//!
//! *Dirty* means *reported since the last committed generation*: a space keeps the union of what scans
//! reported and drops it only after the commit's rename. PAGEMAP_SCAN is the truth, a log of write faults is a hint; only
//! `reconcile` sees both.

pub mod arm;
pub mod backend;
pub mod compared;
pub mod direct;
pub mod fault_log;
pub mod objects;
pub mod precopy;
pub mod reconcile;
pub mod soft_dirty;
pub mod space;

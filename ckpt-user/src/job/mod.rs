//! The supervisor of one job, and its directory.

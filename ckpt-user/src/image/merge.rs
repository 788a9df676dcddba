//! Rewrites a generation as a full one.

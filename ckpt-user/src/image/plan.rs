//! Which generations a prune keeps. Pure.

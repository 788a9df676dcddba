//! The eBPF programs on the kernel that runs this. They need root.
#![allow(clippy::unwrap_used, reason = "tests")]

mod faults;
mod lifecycle;
mod load;
mod log;
mod pids;
mod refused;
mod rows;
mod support;
mod sys;

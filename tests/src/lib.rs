//! What the tests on the real kernel stand on: the box, the victims, the scenarios.
//!
//! A test asks for a [`Sandbox`], runs programs and `ckptbpf` in it, and asserts on what a user sees. The box
//! fails the test for whatever is left behind, so no test needs to clean up after others.
#![deny(unsafe_code)]
// A helper that cannot go on ends the test it runs in; a panic with a message is how.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod calls;
pub mod compare;
pub mod deeds;
pub mod huge_pages;
pub mod matrix;
pub mod memory_group;
pub mod random;
pub mod random_ops;
pub mod sandbox;
pub mod scenario;
pub mod skip;
pub mod slow_disk;
pub mod slurm;
pub mod sys;
pub mod user;
pub mod victim;
pub mod yama;

pub use compare::assert_same;
pub use random::Random;
pub use sandbox::{Cmd, Finished, Process, Running, Sandbox};
pub use scenario::{Expected, Generation, Job, Mode, ckptbpf};
pub use slow_disk::SlowDisk;
pub use user::User;
pub use victim::{victim, victim_cmd};

//! Transparent checkpoint and restart of Linux processes; see ARCHITECTURE.md for the map.
//!
//! ```text
//! launch / attach ─▶ track ─▶ freeze ─▶ capture ─▶ image ─▶ store
//! store ─▶ image ─▶ rebuild ─▶ page (lazy) ─▶ resume ─▶ supervisor again
//! ```
#![deny(unsafe_code)]

pub mod capture;
pub mod check;
pub mod cli;
pub mod daemon;
pub mod freeze;
mod front;
#[doc(hidden)]
pub mod fuzz;
pub mod image;
pub mod job;
pub mod machine;
pub mod memory;
pub mod object;
pub mod page;
pub mod phase;
mod planted;
pub mod rebuild;
pub mod record;
pub mod refusal;
#[cfg(test)]
mod skipped;
pub mod sys;
pub mod task;
pub mod track;

//! Transparent checkpoint and restart of Linux processes; see ARCHITECTURE.md for the map.
//!
//! ```text
//! launch / attach ─▶ track ─▶ freeze ─▶ capture ─▶ image ─▶ store
//! store ─▶ image ─▶ rebuild ─▶ page (lazy) ─▶ resume ─▶ supervisor again
//! ```
#![deny(unsafe_code)]

pub mod check;
pub mod cli;
pub mod image;
pub mod job;
pub mod phase;
pub mod sys;

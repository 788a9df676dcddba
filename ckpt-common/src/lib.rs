//! Records shared by both sides of the kernel boundary: events, map keys, iterator rows.
#![no_std]
#![forbid(unsafe_code)]

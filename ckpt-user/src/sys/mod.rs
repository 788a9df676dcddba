//! All unsafe code of user space: system calls that no crate wraps, ptrace, BPF loading.
//!
//! Everything here is a thin, safe function over one kernel facility; no policy.
#![allow(unsafe_code)]

pub mod bpf;
pub mod caps;
pub mod challenge;
pub mod clone;
pub mod closer;
pub mod deed;
pub mod diag;
pub mod environment;
pub mod file_handle;
pub mod guardian;
pub mod ids;
pub mod inject;
pub mod inotify;
pub mod keyring;
pub mod lock;
pub mod mem;
pub mod mempolicy;
pub mod own;
pub mod packet;
pub mod pagemap;
pub mod pidfd;
pub mod probe;
pub mod ptrace;
pub mod regs;
pub mod remote;
pub mod sched;
pub mod shared;
pub mod shm;
pub mod signalfd;
pub mod socket;
pub mod spawn;
pub mod specimens;
pub mod tcp_queues;
pub mod tee;
pub mod timerfd;
pub mod uffd;
pub mod wait;
pub mod witness;
pub mod xattr;
pub mod xsave;

use std::io;

/// Turns a libc return value into a result, reading errno at once.
pub(crate) fn check(value: i64) -> io::Result<i64> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

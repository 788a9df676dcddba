//! All unsafe code of user space: system calls that no crate wraps, ptrace, BPF loading.
#![allow(unsafe_code)]
pub mod bpf;

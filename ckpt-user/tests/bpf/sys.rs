//! The unsafe calls that the eBPF tests need.
#![allow(unsafe_code)]
use std::{
    io::Read as _,
    os::fd::{AsRawFd as _, OwnedFd},
};

use ckptbpf::sys::probe::Pages;
use nix::unistd::{ForkResult, Pid, fork};

/// The calling thread's alternate stack: address, bytes.
pub fn alternate_stack() -> (u64, u64) {
    // SAFETY: all zeros is a stack_t.
    let mut stack: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; `stack` is writable.
    assert_eq!(unsafe { libc::sigaltstack(std::ptr::null(), &raw mut stack) }, 0);
    (stack.ss_sp as u64, stack.ss_size as u64)
}

/// The calling thread's robust list.
pub fn robust_list() -> u64 {
    let (mut head, mut length) = (0u64, 0usize);
    // SAFETY: get_robust_list(2) of this thread writes a pointer and a size.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length) };
    assert_eq!((result, length), (0, 24));
    head
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap()
}

/// A process whose leader has exited while another thread lives until `go` is closed; its status is then 7.
pub fn leaderless(go: OwnedFd) -> Pid {
    // SAFETY: the child only makes a thread (glibc keeps its allocator usable after a fork), and calls that are safe
    // after one.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            std::thread::spawn(move || {
                let _ = std::fs::File::from(go).read(&mut [0]);
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(7) };
            });
            // SAFETY: exit(2), not exit(3): ends this thread alone, which is the leader; nothing on its stack is used
            // by the other one.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!()
        }
    }
}

/// Has read(2) write to pages of ours.
pub fn read_to(file: &std::fs::File, pages: &Pages, range: std::ops::Range<usize>) {
    assert!(range.start <= range.end && range.end as u64 * 4096 <= pages.bytes());
    let (start, length) = (pages.address() + range.start as u64 * 4096, range.len() * 4096);
    // SAFETY: inside the mapping, which is writable and which nothing borrows from.
    let got = unsafe { libc::read(file.as_raw_fd(), start as *mut libc::c_void, length) };
    assert_eq!(got, length as isize);
}

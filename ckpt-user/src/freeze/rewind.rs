//! The EINTR rule: some system calls fail with EINTR when their thread is merely stopped and runs on (signal(7),
//! "Interruption of system calls and library functions by stop signals"), which no undisturbed run sees.
//!
//! Most calls need nothing: the kernel gives them ERESTARTSYS, ERESTARTNOHAND or a restart block and issues them
//! again by itself. Those in [`interrupted_by_stops`] return EINTR as their final result. It is replaced by
//! ERESTARTNOHAND, at the stop where the kernel has yet to look at it: no handler to run ⇒ the call is issued again;
//! a handler ⇒ EINTR, which is what such a signal does to the call anyway. So a signal that comes while the
//! program stands still is answered as if it had not stood still.
//!
//! **The time that is left.** Issued again, a call would begin its timeout anew, and with checkpoints more often than
//! the timeout never end. When it ends is known to the kernel alone, and only while the thread waits: the timer
//! lies on the thread's kernel stack. So before the stop an iterator reads the stacks of threads in such waits
//! ([`crate::sys::bpf::WaitDecoder`]); after it the count of context switches tells whether the thread was still in the
//! same wait. The timeout is then set to the rest: where it is a number, in its register; where it is a timespec,
//! in a copy below the stack's red zone, which the kernel reads as the call begins and nobody afterwards (the
//! program's own timespec may be constant, or shared). Without BPF, the first stop that meets a wait has it begin anew with the full
//! time, from such a copy, and later ones go by what was seen of it since ([`super::seen`]). For timeouts that sockets keep
//! (SO_RCVTIMEO, SO_SNDTIMEO), the call begins anew with the full time each time.

use crate::sys::mem::Forced;
use crate::sys::regs::{ERESTARTNOHAND, Regs};
use crate::task::hidden::RED_ZONE;
use crate::task::registers::USER_CS;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;

/// A wait that went on when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// The system call.
    pub number: u64,
    /// Voluntary context switches of the thread, the one into this wait counted.
    pub switches: u64,
    /// When it ends on the host's CLOCK_MONOTONIC, nanoseconds.
    pub expires: u64,
}

/// The waits of a tree's threads shortly before it is stopped.
pub type Waits = HashMap<Pid, Wait>;

/// Whether this call returns EINTR when its thread is stopped without a signal. Reads and writes do so on
/// sockets with a timeout (sock_intr_errno() of include/net/sock.h), and have then transferred nothing. fallocate(2) does so on
/// tmpfs and hugetlbfs; what it moves about in a file, it may have moved.
fn interrupted_by_stops(number: i64, regs: &Regs) -> bool {
    if number == libc::SYS_fallocate {
        const MOVES: i32 = libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE;
        return regs.rsi as i32 & MOVES == 0;
    }
    matches!(
        number,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_io_getevents
            | libc::SYS_io_uring_enter
            | libc::SYS_read
            | libc::SYS_readv
            | libc::SYS_preadv2
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_write
            | libc::SYS_writev
            | libc::SYS_pwritev2
            | libc::SYS_splice
            | libc::SYS_sendfile
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_connect
    )
}

/// Has the kernel issue the call again if the stop made it fail. Only for threads that stand at a
/// PTRACE_EVENT_STOP to which no signal was delivered: a handler's frame would have changed rip and orig_rax.
pub fn rewind(regs: &mut Regs) -> bool {
    // 32-bit code has other numbers.
    let is_interrupted = regs.cs == USER_CS && regs.rax as i64 == -i64::from(libc::EINTR);
    if !is_interrupted || !interrupted_by_stops(regs.orig_rax as i64, regs) {
        return false;
    }
    regs.rax = -ERESTARTNOHAND as u64;
    true
}

/// Gives a rewound call `left` nanoseconds instead of its own timeout.
pub fn shorten(regs: &mut Regs, left: u64, memory: &Forced) -> io::Result<()> {
    if matches!(regs.orig_rax as i64, libc::SYS_epoll_wait | libc::SYS_epoll_pwait) {
        regs.r10 = left.div_ceil(1_000_000).min(i32::MAX as u64);
        return Ok(());
    }
    let mut timespec = [0; TIMESPEC];
    timespec[..8].copy_from_slice(&(left / 1_000_000_000).to_le_bytes());
    timespec[8..].copy_from_slice(&(left % 1_000_000_000).to_le_bytes());
    put(regs, timespec, memory)
}

/// Has a rewound call whose timeout stands in memory take it from a copy that nobody changes. What cannot be read, or has no room
/// below the stack, stays as it is.
pub fn copy_timeout(regs: &mut Regs, memory: &Forced) {
    let mut timespec = [0; TIMESPEC];
    let from = by_timespec(regs.orig_rax as i64).map_or(0, |register| *register(regs));
    if from != 0 && memory.read(from, &mut timespec).is_ok() {
        // Without it the call begins anew from its own each time.
        let _ = put(regs, timespec, memory);
    }
}

/// Bytes of `struct timespec`.
const TIMESPEC: usize = 16;

/// Where such a copy is, for a thread with this stack pointer: below its red zone.
pub fn place_of_timeout(stack_pointer: u64) -> u64 {
    stack_pointer.wrapping_sub(RED_ZONE + TIMESPEC as u64) & !15
}

fn put(regs: &mut Regs, timespec: [u8; TIMESPEC], memory: &Forced) -> io::Result<()> {
    let Some(register) = by_timespec(regs.orig_rax as i64) else { return Ok(()) };
    let at = place_of_timeout(regs.rsp);
    memory.write(at, &timespec)?;
    *register(regs) = at;
    Ok(())
}

/// Which register holds the address of the timeout of a call.
fn by_timespec(number: i64) -> Option<fn(&mut Regs) -> &mut u64> {
    let register: fn(&mut Regs) -> &mut u64 = match number {
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => |r| &mut r.r10,
        libc::SYS_rt_sigtimedwait => |r| &mut r.rdx,
        libc::SYS_io_getevents => |r| &mut r.r8,
        _ => return None,
    };
    Some(register)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped_in(number: i64, result: i64) -> Regs {
        let mut regs = crate::sys::regs::from_words(&[0; 27]);
        (regs.rip, regs.rax, regs.orig_rax) = (102, result as u64, number as u64);
        regs.cs = USER_CS;
        regs
    }

    #[test]
    fn only_the_listed_calls_are_issued_again() {
        let mut regs = stopped_in(libc::SYS_epoll_wait, -4);
        assert!(rewind(&mut regs));
        assert_eq!((regs.rip, regs.rax as i64, regs.orig_rax as i64), (102, -514, libc::SYS_epoll_wait));
        for (number, result) in
            [(libc::SYS_close, -4), (libc::SYS_pause, -514), (libc::SYS_epoll_wait, 1), (-1, -4)]
        {
            let mut regs = stopped_in(number, result);
            assert!(!rewind(&mut regs), "{number} {result}");
            assert_eq!(regs, stopped_in(number, result));
        }
        let mut regs = stopped_in(libc::SYS_epoll_wait, -4);
        regs.cs = 0x23;
        assert!(!rewind(&mut regs));
        for (mode, again) in [(0, true), (3, true), (libc::FALLOC_FL_INSERT_RANGE, false)] {
            let mut regs = stopped_in(libc::SYS_fallocate, -4);
            regs.rsi = mode as u64;
            assert_eq!(rewind(&mut regs), again, "mode {mode}");
        }
    }

    #[test]
    fn what_is_left_is_rounded_up() {
        let memory = Forced::open(Pid::this()).unwrap();
        let mut regs = stopped_in(libc::SYS_epoll_wait, -514);
        shorten(&mut regs, 1_000_001, &memory).unwrap();
        assert_eq!(regs.r10, 2);
        shorten(&mut regs, u64::MAX, &memory).unwrap();
        assert_eq!(regs.r10, i32::MAX as u64);
    }

    #[test]
    fn a_timespec_is_copied_and_one_of_nowhere_is_left() {
        let (stack, own) = ([0u64; 64], [3u64, 7]);
        let memory = Forced::open(Pid::this()).unwrap();
        let mut regs = stopped_in(libc::SYS_semtimedop, -514);
        regs.rsp = stack.as_ptr_range().end as u64;
        for nowhere in [0, 8] {
            regs.r10 = nowhere;
            copy_timeout(&mut regs, &memory);
            assert_eq!(regs.r10, nowhere);
        }
        // No stack has room there.
        let mut elsewhere = Regs { rsp: 4096, r10: own.as_ptr() as u64, ..regs };
        copy_timeout(&mut elsewhere, &memory);
        assert_eq!(elsewhere.r10, own.as_ptr() as u64);
        regs.r10 = own.as_ptr() as u64;
        // The second time it is the copy that is copied.
        for _ in 0..2 {
            copy_timeout(&mut regs, &memory);
            assert_eq!(regs.r10, place_of_timeout(regs.rsp));
            let mut copy = [[0; 8]; 2];
            memory.read(regs.r10, copy.as_flattened_mut()).unwrap();
            assert_eq!(copy.map(u64::from_le_bytes), own);
        }
    }

    #[test]
    fn a_timespec_is_replaced_by_a_copy_below_the_red_zone() {
        let stack = [0u64; 64];
        let memory = Forced::open(Pid::this()).unwrap();
        let mut regs = stopped_in(libc::SYS_rt_sigtimedwait, -514);
        regs.rsp = stack.as_ptr_range().end as u64;
        shorten(&mut regs, 3_000_000_007, &memory).unwrap();
        assert!(regs.rdx + 16 <= regs.rsp - RED_ZONE && regs.rdx >= stack.as_ptr() as u64);
        let mut copy = [[0; 8]; 2];
        memory.read(regs.rdx, copy.as_flattened_mut()).unwrap();
        assert_eq!(copy.map(u64::from_le_bytes), [3, 7]);
    }
}

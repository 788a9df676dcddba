//! The EINTR rule: some system calls return EINTR when a thread is merely stopped and run on, which no
//! undisturbed run sees (signal(7), "Interruption of system calls … by stop signals"). They are issued again.

use crate::sys::regs::Regs;

/// Calls that fail with EINTR on a stop without any signal (signal(7); measured for epoll_wait).
const INTERRUPTED_BY_STOPS: [i64; 11] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_io_getevents,
    libc::SYS_recvmmsg,
    libc::SYS_pause,
];

/// Sets the registers back to before the call if the stop made it fail. Only for threads that stand at a
/// PTRACE_EVENT_STOP to which no signal was delivered: a handler's frame would have changed rip and orig_rax.
pub fn rewind(regs: &mut Regs) -> bool {
    let number = regs.orig_rax as i64;
    if regs.rax as i64 != -i64::from(libc::EINTR) || !INTERRUPTED_BY_STOPS.contains(&number) {
        return false;
    }
    regs.rax = regs.orig_rax;
    regs.orig_rax = u64::MAX;
    regs.rip -= 2;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_calls_are_issued_again() {
        let mut regs = crate::sys::regs::from_words(&[0; 27]);
        (regs.rip, regs.rax, regs.orig_rax) = (102, -4i64 as u64, libc::SYS_epoll_wait as u64);
        assert!(rewind(&mut regs));
        assert_eq!((regs.rip, regs.rax, regs.orig_rax as i64), (100, libc::SYS_epoll_wait as u64, -1));
        (regs.rip, regs.rax, regs.orig_rax) = (102, -4i64 as u64, libc::SYS_read as u64);
        assert!(!rewind(&mut regs));
    }
}

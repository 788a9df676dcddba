//! timerfd_create(2), timerfd_settime(2), timerfd_gettime(2). Times are nanoseconds.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn spec(ns: i64) -> libc::timespec {
    libc::timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) }
}

fn ns(t: libc::timespec) -> i64 {
    t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec)
}

/// A new, disarmed timer.
///
/// # Errors
/// EPERM for an alarm clock without CAP_WAKE_ALARM.
pub fn create(clock: i32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, returns a new descriptor or -1.
    let fd = super::check(i64::from(unsafe { libc::timerfd_create(clock, flags) }))?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Arms the timer: flags (TFD_TIMER_*), first expiry, interval.
pub fn set(fd: BorrowedFd<'_>, flags: i32, value: i64, interval: i64) -> io::Result<()> {
    let new = libc::itimerspec { it_interval: spec(interval), it_value: spec(value) };
    // SAFETY: `new` lives across the call, a null old value is allowed.
    let done = unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const new, std::ptr::null_mut()) };
    super::check(i64::from(done)).map(drop)
}

/// Time to the next expiry (0: disarmed) and interval. The timer counts expiries that nobody has read yet by this
/// call, so that fdinfo shows all of them afterwards.
pub fn get(fd: BorrowedFd<'_>) -> io::Result<(i64, i64)> {
    // SAFETY: all-zero is a valid itimerspec (plain integers).
    let mut now: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: `now` lives across the call and has the size that the kernel writes.
    super::check(i64::from(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut now) }))?;
    Ok((ns(now.it_value), ns(now.it_interval)))
}

/// Has the armed timer count so many expiries that nobody has read.
///
/// # Errors
/// ENOTTY where the kernel does not offer it (CONFIG_CHECKPOINT_RESTORE).
pub fn set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    // TFD_IOC_SET_TICKS (linux/timerfd.h): _IOW('T', 0, __u64).
    const SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: the kernel reads eight bytes, which live across the call.
    super::check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), SET_TICKS, &raw const ticks) })).map(drop)
}

//! timerfd_create(2): timers that go on. Relative ones, and those of clocks that go on over a restart, with the time
//! that was left; absolute ones of the wall clock at their moment, or at once when it has passed.
//!
//! Not kept, where the kernel cannot be told how many expiries nobody has read (CONFIG_CHECKPOINT_RESTORE): that a relative
//! timer of the wall clock for which some wait is relative; of the time to its next restart, it counts all.

use super::{Object, Seen};
use crate::sys::timerfd;
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TimerRecord {
    /// CLOCK_*.
    #[prost(int32, tag = "1")]
    pub clock: i32,
    /// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET, as given to timerfd_settime(2).
    #[prost(int32, tag = "2")]
    pub flags: i32,
    /// Nanoseconds until it expires, 0 when it is not armed.
    #[prost(int64, tag = "3")]
    pub left: i64,
    #[prost(int64, tag = "4")]
    pub interval: i64,
    /// Expiries that nobody has read yet.
    #[prost(uint64, tag = "5")]
    pub ticks: u64,
    /// The moment on its clock when `left` was read, for an absolute timer of the wall clock.
    #[prost(int64, tag = "6")]
    pub now: i64,
}

fn wall_clock(clock: i32) -> bool {
    clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_ALARM
}

fn now(clock: i32) -> io::Result<i64> {
    let clock = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    };
    let t = clock_gettime(ClockId::from_raw(clock))?;
    Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// No time left and no expiry counted: the timer is disarmed, or due and its interrupt still to come (seen in one of a
/// hundred freezes of a 4 ms timer). So long a disarmed one is looked at again; a periodic one is rarely disarmed.
const OVERDUE: Duration = Duration::from_millis(5);
const OVERDUE_ONCE: Duration = Duration::from_micros(300);

/// # Errors
/// The reason why it cannot be saved.
pub fn capture(seen: &Seen, fd: &OwnedFd) -> Result<Object, String> {
    let begun = Instant::now();
    let (left, interval, clock, ticks, flags) = loop {
        let (left, interval) = timerfd::get(fd.as_fd()).map_err(|e| e.to_string())?;
        // Only after the call above are all expiries counted.
        let info = seen.fresh_info().map_err(|e| e.to_string())?;
        let (clock, ticks, flags) = shown(&info).ok_or("this kernel does not show timers")?;
        let patience = if interval > 0 { OVERDUE } else { OVERDUE_ONCE };
        if left > 0 || ticks > 0 || begun.elapsed() > patience {
            break (left, interval, clock, ticks, flags);
        }
        std::hint::spin_loop();
    };
    let now = now(clock).map_err(|e| e.to_string())?;
    Ok(Object::Timer(TimerRecord { clock, flags, left, interval, ticks, now }))
}

/// Clock, expiries and flags, as fdinfo shows them.
pub(crate) fn shown(info: &str) -> Option<(i32, u64, i32)> {
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let flags = field("settime flags:").and_then(|v| i32::from_str_radix(v, 8).ok()).unwrap_or(0);
    Some((field("clockid:")?.parse().ok()?, field("ticks:")?.parse().ok()?, flags))
}

/// The arguments of timerfd_settime(2): flags, first expiry. `now` is read from the timer's clock.
pub(crate) fn first(record: &TimerRecord, now: i64) -> (i32, i64) {
    // One that does not repeat has none left once it has expired.
    let left = if record.ticks > 0 && record.interval == 0 { 0 } else { record.left };
    // An expiry in the past is counted at once, all of a periodic timer's since then.
    let since = i64::try_from(record.ticks).unwrap_or(i64::MAX).saturating_mul(record.interval);
    if is_on_the_wall(record) && (record.left > 0 || record.ticks > 0) {
        return (record.flags, record.now.saturating_add(left).saturating_sub(since).max(1));
    }
    if record.ticks > 0 {
        return (libc::TFD_TIMER_ABSTIME, now.saturating_add(left).saturating_sub(since).max(1));
    }
    (0, record.left)
}

fn is_on_the_wall(record: &TimerRecord) -> bool {
    record.flags & libc::TFD_TIMER_ABSTIME != 0 && wall_clock(record.clock)
}

pub fn rebuild(record: &TimerRecord, flags: u32) -> io::Result<OwnedFd> {
    let nonblocking = flags as i32 & libc::TFD_NONBLOCK;
    let fd = timerfd::create(record.clock, libc::TFD_CLOEXEC | nonblocking)?;
    let is_relative = wall_clock(record.clock) && !is_on_the_wall(record);
    if record.ticks > 0 && is_relative && stays_relative(record, &fd)? {
        return Ok(fd);
    }
    let (how, value) = first(record, now(record.clock)?);
    timerfd::set(fd.as_fd(), how, value, record.interval)?;
    Ok(fd)
}

/// Arms a relative timer of which expiries wait, or the next restart took it for an absolute one; whether the kernel can be
/// told of them.
fn stays_relative(record: &TimerRecord, fd: &OwnedFd) -> io::Result<bool> {
    if record.interval == 0 {
        return timerfd::set(fd.as_fd(), 0, 1, 0).map(|()| true);
    }
    let mut left = record.left.max(1);
    loop {
        let begun = Instant::now();
        timerfd::set(fd.as_fd(), 0, left, record.interval)?;
        if timerfd::set_ticks(fd.as_fd(), record.ticks).is_err() {
            return Ok(false);
        }
        // An expiry between the two calls would not be counted.
        let took = i64::try_from(begun.elapsed().as_nanos()).unwrap_or(i64::MAX);
        if took < left {
            return Ok(true);
        }
        left = took.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(fd: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        nix::unistd::read(fd, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn unread_expiries_come_back() {
        let record = TimerRecord {
            clock: libc::CLOCK_MONOTONIC,
            left: 4_000_000_000,
            interval: 10_000_000_000,
            ticks: 3,
            ..Default::default()
        };
        let fd = rebuild(&record, 0).unwrap();
        let (left, _) = timerfd::get(fd.as_fd()).unwrap();
        assert!((3_000_000_000..=4_000_000_000).contains(&left), "{left}");
        assert_eq!(unread(&fd), 3);
    }

    #[test]
    fn unread_expiries_of_the_wall_clock_come_back_as_they_were() {
        let record = TimerRecord {
            clock: libc::CLOCK_REALTIME,
            left: 4_000_000_000,
            interval: 10_000_000_000,
            ticks: 3,
            ..Default::default()
        };
        let overdue = TimerRecord { left: 1, ..record.clone() };
        assert!((3..=4).contains(&unread(&rebuild(&overdue, 0).unwrap())));
        let fd = rebuild(&record, 0).unwrap();
        let info = || {
            let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
            shown(&std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap()).unwrap()
        };
        assert!(timerfd::get(fd.as_fd()).unwrap().0 <= 4_000_000_000);
        // What does not offer it keeps the number, and is absolute then.
        if timerfd::set_ticks(fd.as_fd(), 3).is_ok() {
            assert_eq!(info(), (libc::CLOCK_REALTIME, 3, 0));
        }
        assert_eq!(unread(&fd), 3);
        let absolute = TimerRecord { flags: libc::TFD_TIMER_ABSTIME, now: 100_000_000_000, ..record };
        assert_eq!(first(&absolute, i64::MAX), (1, 74_000_000_000));
        assert_eq!(
            first(&TimerRecord { interval: 0, ticks: 1, left: 0, ..absolute }, 9),
            (1, 100_000_000_000)
        );
    }

    #[test]
    fn the_wall_clock_is_absolute_and_the_others_go_on() {
        let absolute =
            TimerRecord { flags: libc::TFD_TIMER_ABSTIME, left: 5, now: 100, ..Default::default() };
        assert_eq!(first(&TimerRecord { clock: libc::CLOCK_REALTIME, ..absolute.clone() }, 900), (1, 105));
        assert_eq!(first(&TimerRecord { clock: libc::CLOCK_MONOTONIC, ..absolute }, 900), (0, 5));
        assert_eq!(first(&TimerRecord::default(), 900), (0, 0));
    }
}

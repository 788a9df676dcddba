//! timerfd_create(2): timers that go on. Relative ones, and those of clocks that go on over a restart, with the time
//! that was left; absolute ones of the wall clock at their moment, or at once when it has passed.

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
    if record.ticks > 0 {
        // An expiry in the past is counted at once, all of a periodic timer's since then.
        let since = i64::try_from(record.ticks).unwrap_or(i64::MAX).saturating_mul(record.interval);
        let left = if record.interval == 0 { 0 } else { record.left };
        return (libc::TFD_TIMER_ABSTIME, now.saturating_add(left).saturating_sub(since).max(1));
    }
    if record.left == 0 {
        return (0, 0);
    }
    if record.flags & libc::TFD_TIMER_ABSTIME != 0 && wall_clock(record.clock) {
        return (record.flags, record.now.saturating_add(record.left));
    }
    (0, record.left)
}

pub fn rebuild(record: &TimerRecord, flags: u32) -> io::Result<OwnedFd> {
    let nonblocking = flags as i32 & libc::TFD_NONBLOCK;
    let fd = timerfd::create(record.clock, libc::TFD_CLOEXEC | nonblocking)?;
    let (how, value) = first(record, now(record.clock)?);
    timerfd::set(fd.as_fd(), how, value, record.interval)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut bytes = [0; 8];
        nix::unistd::read(&fd, &mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 3);
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

//! POSIX timers of a process (timer_create(2)).
//!
//! /proc/PID/timers shows who they are; what is left of their time only the process itself may ask (timer_gettime(2)), so
//! a system call is injected for each. A timer whose signal waits to be taken is not running: the kernel starts it again
//! when the signal is taken. That signal is not saved; the timer is made to ring at once instead.

use super::clock::Shift;
use super::proc::ProcDir;
use crate::freeze::{FrozenProcess, FrozenThread};
use crate::refusal::{Reading, Refusal};
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::io;

const SECOND: u64 = 1_000_000_000;
const SIGEV_THREAD_ID: u32 = 4;
/// The clock of the thread that has made the timer: CLOCK_THREAD_CPUTIME_ID as the kernel keeps it.
const OWN_THREAD: i32 = -2;
/// CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI.
const CLOCKS: [i32; 4] = [0, 1, 7, 11];
/// The last three bits of a clock that is a descriptor (`CLOCKFD`).
const DESCRIPTOR: i32 = 3;

/// One timer; times in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PosixTimer {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(sint32, tag = "2")]
    pub clock: i32,
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2, SIGEV_THREAD_ID 4.
    #[prost(uint32, tag = "3")]
    pub notify: u32,
    #[prost(uint32, tag = "4")]
    pub signal: u32,
    #[prost(fixed64, tag = "5")]
    pub value: u64,
    /// With SIGEV_THREAD_ID.
    #[prost(uint32, tag = "6")]
    pub thread: u32,
    /// 0: rings once.
    #[prost(uint64, tag = "7")]
    pub interval: u64,
    /// Until it rings next; 0: not armed.
    #[prost(uint64, tag = "8")]
    pub left: u64,
    /// It has rung, and its signal waits to be taken.
    #[prost(bool, tag = "9")]
    pub due: bool,
    /// How many times more it has rung since, or, where it is not due, had rung when its last signal was taken: what
    /// timer_getoverrun(2) is going to give, or gives.
    #[prost(uint64, tag = "10")]
    pub overruns: u64,
}

/// How many times more than once a timer has rung: since its signal waits, and before the last one was taken. Also those
/// that have not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrun {
    pub waiting: u64,
    pub taken: u64,
    /// It was set anew since: a signal of it that waits comes to nothing.
    pub anew: bool,
}

/// By process and timer; those that are not in it have none.
pub type Overruns = HashMap<(Pid, u32), Overrun>;

/// The timers of a process without their times.
///
/// # Errors
/// Named: clocks and threads that cannot be had again.
pub fn shown(process: &FrozenProcess) -> Result<Vec<PosixTimer>, Refusal> {
    let pid = process.pid;
    let is_alone = process.threads.len() == 1 && process.reached_by() == pid;
    let Ok(text) = ProcDir::process(pid).text("timers") else { return Ok(Vec::new()) };
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "cannot understand /proc/PID/timers");
    let timers = parse(&text).ok_or_else(invalid).reading(pid, "timers")?;
    for timer in &timers {
        let what = || format!("has POSIX timer {} (timer_create(2))", timer.id);
        let refused = |reason: &str| Err(Refusal::unsupported(pid, what(), reason));
        if timer.clock == OWN_THREAD && !is_alone {
            return refused("whose thread's CPU time it follows is not known; use pthread_getcpuclockid(3)");
        }
        if !CLOCKS.contains(&timer.clock) && (timer.clock >= 0 || timer.clock & 7 == DESCRIPTOR) {
            return refused("timers on this clock are not supported");
        }
        let is_thread = |t: &FrozenThread| t.tid.as_raw() as u32 == timer.thread;
        if timer.notify & SIGEV_THREAD_ID != 0 && !process.threads.iter().any(is_thread) {
            return refused("the thread that it signals has ended");
        }
    }
    Ok(timers)
}

/// Entries of four lines, ascending by id.
pub(crate) fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name == "ID" {
            timers.push(PosixTimer { id: value.parse().ok()?, ..PosixTimer::default() });
            continue;
        }
        let timer = timers.last_mut()?;
        match name {
            "signal" => {
                let (signal, pointer) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(pointer.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (kind, who) = value.split_once('/')?;
                let kind = ["signal", "none", "thread"].iter().position(|k| *k == kind)?;
                let (whom, number) = who.split_once('.')?;
                timer.notify = kind as u32;
                if whom == "tid" {
                    timer.notify |= SIGEV_THREAD_ID;
                    timer.thread = number.parse().ok()?;
                }
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    timers.sort_unstable_by_key(|t| t.id);
    Some(timers)
}

/// `struct itimerspec` as timer_gettime(2) writes it: interval and time left, nanoseconds.
pub fn times(bytes: &[u8]) -> (u64, u64) {
    let word = |i: usize| bytes.iter().skip(8 * i).take(8).rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
    let time = |i: usize| word(i).saturating_mul(SECOND).saturating_add(word(i + 1));
    (time(0), time(2))
}

/// Which timer a queued signal is of, if of one.
pub fn of_signal(info: &[u8; 128]) -> Option<u32> {
    const SI_TIMER: i32 = -2;
    let word = |i: usize| i32::from_le_bytes([info[i], info[i + 1], info[i + 2], info[i + 3]]);
    (word(8) == SI_TIMER).then(|| word(16) as u32)
}

/// Notes how often each has rung, and which of them are to ring at another time than that of the signal that waits.
pub fn count(pid: Pid, timers: &mut [PosixTimer], overruns: &Overruns) {
    for timer in timers {
        let Overrun { waiting, taken, anew } = overruns.get(&(pid, timer.id)).copied().unwrap_or_default();
        timer.due &= !anew;
        timer.overruns = if timer.interval == 0 {
            0
        } else if timer.due {
            waiting
        } else {
            taken
        };
    }
}

/// Leaves out the signals of timers that ring again by themselves, and those that come to nothing: of a timer that was set
/// anew, or deleted, while its signal waited. Linux delivered the latter before 6.13; `is_delivered`: as here.
pub fn without(pending: Vec<[u8; 128]>, timers: &[PosixTimer], is_delivered: bool) -> Vec<[u8; 128]> {
    let is_due = |id| timers.iter().any(|t| t.id == id && t.due);
    let stays = |info: &[u8; 128]| of_signal(info).is_none_or(|id| is_delivered && !is_due(id));
    pending.into_iter().filter(stays).collect()
}

/// Makes the timers and arms them; the clocks of the process have begun to run. All signals of its `threads` are blocked.
///
/// Those that are to have rung come first, while hardly another one rings that might have the same signal.
pub fn rebuild(timers: &[PosixTimer], threads: &mut [Remote], shift: Shift) -> io::Result<()> {
    let mut next = 0;
    for timer in timers {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidData, "POSIX timers are not in the order of their ids");
        let gap = timer.id.checked_sub(next).ok_or_else(invalid)?;
        create(timer, gap, maker(threads)?)?;
        next = timer.id.checked_add(1).ok_or_else(invalid)?;
    }
    let (mut armed, mut rung) = (HashSet::new(), HashSet::new());
    let to_have_rung = timers.iter().filter(|timer| !timer.due && timer.overruns != 0);
    let recorded = match to_have_rung.clone().next() {
        Some(_) => threads.iter_mut().map(waiting).collect::<io::Result<Vec<u64>>>()?,
        None => Vec::new(),
    };
    for timer in to_have_rung {
        if rung_before(timer, threads, &recorded, shift, &mut rung)? {
            armed.insert(timer.id);
        }
    }
    for timer in timers.iter().filter(|timer| rung.contains(&timer.id) || !armed.contains(&timer.id)) {
        let has_rung = armed.contains(&timer.id);
        let timer = if has_rung { just_rung(timer, maker(threads)?)? } else { *timer };
        let (absolute, at) = first_ring(&timer, shift);
        arm(&timer, absolute, at, maker(threads)?)?;
    }
    Ok(())
}

/// A timer that is armed and has rung since.
fn just_rung(timer: &PosixTimer, remote: &mut Remote) -> io::Result<PosixTimer> {
    let mut bytes = [0; 32];
    let at = remote.data(&bytes)?;
    remote.call(libc::SYS_timer_gettime, &[u64::from(timer.id), at])?;
    remote.read(at, &mut bytes)?;
    Ok(PosixTimer { due: true, overruns: 0, left: times(&bytes).1, ..*timer })
}

fn maker(threads: &mut [Remote]) -> io::Result<&mut Remote> {
    threads.first_mut().ok_or_else(|| io::Error::other("the process has no thread"))
}

fn arm(timer: &PosixTimer, absolute: bool, at: u64, remote: &mut Remote) -> io::Result<()> {
    let words = [timer.interval / SECOND, timer.interval % SECOND, at / SECOND, at % SECOND];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let new = remote.data(&bytes)?;
    remote.call(libc::SYS_timer_settime, &[u64::from(timer.id), u64::from(absolute), new, 0]).map(drop)
}

/// Has a timer ring as often as it had rung when its last signal was taken, takes that, and leaves it armed; false where that
/// cannot be, as beside `recorded` signals of the same number, which are not to be taken. Timers that were armed before, and
/// whose signals were taken, are put into `rung`.
fn rung_before(
    timer: &PosixTimer,
    threads: &mut [Remote],
    recorded: &[u64],
    shift: Shift,
    rung: &mut HashSet<u32>,
) -> io::Result<bool> {
    /// An interval may be over in the midst of it.
    const TRIES: u32 = 5;
    const SIGEV_NONE: u32 = 1;
    let set = 1u64 << (timer.signal.clamp(1, 64) - 1);
    let is_told = |thread: &Remote| thread.pid().as_raw() as u32 == timer.thread;
    let taker = match timer.notify & SIGEV_THREAD_ID {
        0 => Some(0),
        _ => threads.iter().position(is_told),
    };
    let can = timer.notify & SIGEV_NONE == 0 && timer.left <= timer.interval;
    let taker = taker.filter(|&taker| can && recorded.get(taker).is_some_and(|waiting| waiting & set == 0));
    let (Some(taker), Some(now)) = (taker, now(timer.clock, shift)) else { return Ok(false) };
    let rings = timer.overruns.saturating_add(1);
    let mut next = (now as u64).saturating_add(timer.left);
    for _ in 0..TRIES {
        let first = rings.checked_mul(timer.interval).and_then(|ago| next.checked_sub(ago));
        let Some(first) = first.filter(|&first| first > 0) else { return Ok(false) };
        arm(timer, true, first, maker(threads)?)?;
        let mut taken = take(set, &mut threads[taker])?;
        while let Some(other) = taken.filter(|&id| id != timer.id) {
            rung.insert(other);
            taken = take(set, &mut threads[taker])?;
        }
        if taken.is_none() {
            return Ok(false);
        }
        let told = maker(threads)?.call(libc::SYS_timer_getoverrun, &[u64::from(timer.id)])?;
        match told.checked_sub(timer.overruns) {
            Some(0) => return Ok(true),
            Some(more) => next = next.saturating_add(more.saturating_mul(timer.interval)),
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// Takes a signal of a timer: which one it is of; none when none has come in time.
fn take(set: u64, remote: &mut Remote) -> io::Result<Option<u32>> {
    const A_SECOND: [u64; 2] = [1, 0];
    let mut info = [0; 128];
    let (set, at) = (remote.data(&set.to_le_bytes())?, remote.data(&info)?);
    let patience = remote.data(&A_SECOND.map(u64::to_le_bytes).concat())?;
    match remote.call(libc::SYS_rt_sigtimedwait, &[set, at, patience, 8]) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
        taken => {
            taken?;
            remote.read(at, &mut info)?;
            Ok(of_signal(&info))
        }
    }
}

/// The signals that wait for a thread, also those that wait for its process.
fn waiting(remote: &mut Remote) -> io::Result<u64> {
    let at = remote.data(&[0; 8])?;
    remote.call(libc::SYS_rt_sigpending, &[at, 8])?;
    let mut set = [0; 8];
    remote.read(at, &mut set)?;
    Ok(u64::from_le_bytes(set))
}

/// What the clock of a timer shows; none of a clock of CPU time.
fn now(clock: i32, shift: Shift) -> Option<i64> {
    match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_TAI => super::clock::now(clock),
        clock => shift.now(clock),
    }
    .filter(|&now| now > 0)
}

/// When it rings first: an absolute time, or one from now on; 0 never.
pub(crate) fn first_ring(timer: &PosixTimer, shift: Shift) -> (bool, u64) {
    if !timer.due {
        return (false, timer.left);
    }
    // When it had rung, so that the later ones come when they would have come, and are counted.
    let rings = timer.overruns.saturating_add(1);
    let ns = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    let next = now(timer.clock, shift).map(|now| now.saturating_add(ns(timer.left)));
    let at = |rings: u64| next.map(|next| next.saturating_sub(ns(timer.interval.saturating_mul(rings))));
    match [at(rings), at(1)].into_iter().flatten().find(|&t| timer.interval != 0 && t > 0) {
        Some(first) => (true, first as u64),
        None => (false, 1),
    }
}

/// Makes one timer; the kernel by itself gives the next one an id that is `gap` below.
fn create(timer: &PosixTimer, gap: u32, remote: &mut Remote) -> io::Result<()> {
    /// From here on it is cheaper to ask for the number, where the kernel can be asked.
    const NEAR: u32 = 64;
    const MOST: u32 = 1 << 20;
    const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
    let exact = |remote: &mut Remote, on: u64| {
        remote.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0]).is_ok()
    };
    let asked = gap > NEAR && exact(remote, 1);
    if !asked && gap > MOST {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("POSIX timer {}: this kernel gives no such number to a new timer", timer.id),
        ));
    }
    if !asked {
        skip(timer.id - gap..timer.id, remote)?;
    }
    // struct sigevent: value, signal, notification, thread.
    let mut event = timer.value.to_le_bytes().to_vec();
    event.extend([timer.signal, timer.notify, timer.thread].iter().flat_map(|w| w.to_le_bytes()));
    event.resize(64, 0);
    let event = remote.data(&event)?;
    let id_at = remote.data(&timer.id.to_le_bytes())?;
    let made =
        remote.run(&[Call::new(libc::SYS_timer_create, &[i64::from(timer.clock) as u64, event, id_at])])?[0];
    if made < 0 {
        let error = io::Error::from_raw_os_error(-made as i32);
        return Err(io::Error::new(error.kind(), format!("POSIX timer {}: {error}", timer.id)));
    }
    let mut id = [0; 4];
    remote.read(id_at, &mut id)?;
    if asked {
        exact(remote, 0);
    }
    match u32::from_le_bytes(id) {
        id if id == timer.id => Ok(()),
        id => Err(io::Error::other(format!("POSIX timer {} became timer {id}", timer.id))),
    }
}

/// Uses up numbers: timers that are made and deleted again.
fn skip(ids: std::ops::Range<u32>, remote: &mut Remote) -> io::Result<()> {
    let ids: Vec<u32> = ids.collect();
    for some in ids.chunks(256) {
        let at = remote.data(&[0; 8])?;
        let pair = |&id: &u32| {
            let monotonic = libc::CLOCK_MONOTONIC as u64;
            [
                Call::new(libc::SYS_timer_create, &[monotonic, 0, at]),
                Call::new(libc::SYS_timer_delete, &[u64::from(id)]),
            ]
        };
        let calls: Vec<Call> = some.iter().flat_map(pair).collect();
        if let Some(error) = remote.run(&calls)?.into_iter().find(|&r| r < 0) {
            return Err(io::Error::from_raw_os_error(-error as i32));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_entry_is_understood() {
        let text = "ID: 7\nsignal: 34/00007fff86e452a8\nnotify: signal/tid.2634\nClockID: 1\n\
                    ID: 2\nsignal: 14/0000000000000002\nnotify: none/pid.2634\nClockID: -6\n";
        let timers = parse(text).unwrap();
        let first = PosixTimer { id: 2, clock: -6, notify: 1, signal: 14, value: 2, ..PosixTimer::default() };
        let second = PosixTimer { id: 7, clock: 1, notify: 4, signal: 34, ..PosixTimer::default() };
        assert_eq!(timers, [first, PosixTimer { value: 0x7fff_86e4_52a8, thread: 2634, ..second }]);
        assert_eq!(parse("ID: x\n"), None);
    }
}

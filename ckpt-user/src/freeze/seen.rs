//! Waits that are seen to go on, where no BPF tells when they end.
//!
//! epoll_wait(2) and its like begin anew after a stop, and only the kernel knows when they would have ended ([`super::rewind`]). So
//! between two stops it is looked who waits in such a call: /proc/PID/task/TID/syscall shows its timeout, or where that stands; only
//! a copy of ours below the stack is read then, as any other may be another one since. The wait had begun by then, so that it ends no
//! later than that timeout after the look; it is given no less. At the next stop the count of context switches tells, as ever, whether
//! it is still the same wait. So a wait grows by what passes until a stop has met it, and the first look at it thereafter.

use super::rewind::{Wait, Waits, place_of_timeout};
use super::tree;
use crate::sys::mem;
use crate::task::call::{self, InCall};
use crate::task::clock;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;

const SECOND: u64 = 1_000_000_000;

/// The waits of a tree's threads that go on now.
pub fn look(root: Pid) -> Waits {
    let threads = tree::members(root).into_iter().flat_map(|(pid, _)| {
        let threads = ProcDir::process(pid).numbers("task").unwrap_or_default();
        threads.into_iter().map(move |tid| (pid, Pid::from_raw(tid)))
    });
    threads.filter_map(|(pid, tid)| Some((tid, wait_of(pid, tid)?))).collect()
}

/// None of a thread that has waited, run and waited again while it was looked at.
fn wait_of(pid: Pid, tid: Pid) -> Option<Wait> {
    let thread = ProcDir::thread(pid, tid);
    let waits = || timeout_of(&thread.text("syscall").ok()?);
    // Most do not.
    waits()?;
    let switches = || thread.status().ok()?.decimal("voluntary_ctxt_switches").ok();
    let before = switches()?;
    let (number, timeout) = waits()?;
    let timeout = match timeout {
        Timeout::Nanoseconds(timeout) => timeout,
        Timeout::At(address) => timespec(tid, address)?,
    };
    let now = clock::now(libc::CLOCK_MONOTONIC)? - clock::own_offsets().ok()?.0;
    let expires = u64::try_from(now).ok()?.checked_add(timeout)?;
    (switches()? == before).then_some(Wait { number, switches: before, expires })
}

/// How long a call waits.
#[derive(Debug, PartialEq, Eq)]
enum Timeout {
    Nanoseconds(u64),
    /// What a copy of ours says.
    At(u64),
}

/// Of a thread that waits in such a call, by its file `syscall`: which, and its timeout.
fn timeout_of(syscall: &str) -> Option<(u64, Timeout)> {
    let InCall { number, arguments: [_, _, third, fourth, fifth, _], stack_pointer } = call::parse(syscall)?;
    let copy = |address: u64| (address == place_of_timeout(stack_pointer)).then_some(Timeout::At(address));
    let timeout = match number {
        // Below 0 it never ends.
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            Timeout::Nanoseconds(u64::try_from(fourth as u32 as i32).ok()? * 1_000_000)
        }
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => copy(fourth)?,
        libc::SYS_rt_sigtimedwait => copy(third)?,
        libc::SYS_io_getevents => copy(fifth)?,
        _ => return None,
    };
    Some((u64::try_from(number).ok()?, timeout))
}

/// `struct timespec` at an address of a thread's, nanoseconds.
fn timespec(tid: Pid, address: u64) -> Option<u64> {
    let mut words = [[0; 8]; 2];
    mem::read(tid, address, words.as_flattened_mut()).ok()?;
    let [seconds, nanoseconds] = words.map(u64::from_le_bytes);
    seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
}

/// What is known of waits after another look: of one that still goes on, the first look knows best when it ends.
pub fn known(before: &Waits, now: Waits) -> Waits {
    let first = |(tid, wait): (Pid, Wait)| {
        let is_it = |known: &&Wait| (known.number, known.switches) == (wait.number, wait.switches);
        let known = before.get(&tid).filter(is_it);
        (tid, Wait { expires: known.map_or(wait.expires, |known| known.expires.min(wait.expires)), ..wait })
    };
    now.into_iter().map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};
    use nix::unistd::gettid;
    use std::sync::mpsc;

    #[test]
    fn a_timeout_is_read_and_none_of_who_waits_for_ever_or_in_another_call() {
        let shown = |call: &str, timeout: &str| {
            format!("{call} 0x3 0x7ffe0000 0x10 {timeout} 0x0 0x8 0x7ffd0000 0x7f00\n")
        };
        assert_eq!(timeout_of(&shown("232", "0x1388")), Some((232, Timeout::Nanoseconds(5 * SECOND))));
        assert_eq!(timeout_of(&shown("281", "0x1")), Some((281, Timeout::Nanoseconds(1_000_000))));
        let copy = place_of_timeout(0x7ffd_0000);
        let at = |call: u64| Some((call, Timeout::At(copy)));
        assert_eq!(timeout_of(&shown("220", &format!("{copy:#x}"))), at(220));
        let of_signals = format!("128 0x3 0x0 {copy:#x} 0x8 0x0 0x8 0x7ffd0000 0x7f00\n");
        assert_eq!(timeout_of(&of_signals), at(128));
        for other in [
            shown("232", "0xffffffff"),
            shown("232", "0xffffffffffffffff"),
            shown("7", "0x1388"),
            shown("220", "0x1388"),
            shown("220", "0x0"),
            "running\n".to_owned(),
            "-1 0x7ffd 0x7f00\n".to_owned(),
            "232 0x3\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(timeout_of(&other), None, "{other}");
        }
    }

    #[test]
    fn the_first_look_at_a_wait_counts() {
        let wait = |switches, expires| Wait { number: 232, switches, expires };
        let tid = Pid::from_raw;
        let before = Waits::from([(tid(1), wait(5, 100)), (tid(2), wait(5, 100))]);
        let now = Waits::from([(tid(1), wait(5, 130)), (tid(2), wait(7, 130)), (tid(3), wait(1, 130))]);
        let known = known(&before, now);
        let expires: Vec<u64> = [1, 2, 3].iter().map(|&id| known[&tid(id)].expires).collect();
        assert_eq!(expires, [100, 130, 130]);
    }

    #[test]
    fn a_wait_of_a_thread_is_seen_and_ends_no_later_than_is_said() {
        let now = || clock::now(libc::CLOCK_MONOTONIC).unwrap() - clock::own_offsets().unwrap().0;
        let (to, from) = mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
            to.send((gettid(), now().unsigned_abs())).unwrap();
            epoll.wait(&mut [EpollEvent::empty()], 1000u16).unwrap()
        });
        let (tid, begun) = from.recv().unwrap();
        let mut seen = None;
        while seen.is_none() && !waiting.is_finished() {
            seen = wait_of(Pid::this(), tid);
        }
        assert_eq!(waiting.join().unwrap(), 0);
        let wait = seen.unwrap();
        assert!(wait.expires >= begun + SECOND);
        assert!(wait.expires <= now().unsigned_abs() + SECOND);
    }
}

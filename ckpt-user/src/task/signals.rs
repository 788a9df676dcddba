//! Signal masks, actions, alternate stacks and pending signals.

use super::hidden::{ProcessState, ThreadState};
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use std::io;

/// `struct kernel_sigaction` of one signal.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Action {
    #[prost(uint32, tag = "1")]
    pub signal: u32,
    /// SIG_DFL 0, SIG_IGN 1, or the handler's address.
    #[prost(uint64, tag = "2")]
    pub handler: u64,
    #[prost(uint64, tag = "3")]
    pub flags: u64,
    #[prost(uint64, tag = "4")]
    pub restorer: u64,
    #[prost(uint64, tag = "5")]
    pub mask: u64,
}

/// A thread's own signal state.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct ThreadSignals {
    /// Blocked signals, bit N-1 for signal N.
    #[prost(fixed64, tag = "1")]
    pub mask: u64,
    #[prost(uint64, tag = "2")]
    pub altstack: u64,
    #[prost(int32, tag = "3")]
    pub altstack_flags: i32,
    #[prost(uint64, tag = "4")]
    pub altstack_size: u64,
    /// Queued for this thread, oldest first: 128-byte siginfo each.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub pending: Vec<Vec<u8>>,
}

/// The actions that differ from the default.
pub fn actions(state: &ProcessState) -> Vec<Action> {
    let changed = |(i, a): (usize, &[u64; 4])| {
        let [handler, flags, restorer, mask] = *a;
        (*a != [0; 4]).then_some(Action { signal: i as u32 + 1, handler, flags, restorer, mask })
    };
    state.actions.iter().enumerate().filter_map(changed).collect()
}

pub fn of_thread(mask: u64, state: &ThreadState, pending: &[[u8; 128]]) -> ThreadSignals {
    let (altstack, altstack_flags, altstack_size) = state.altstack;
    ThreadSignals {
        mask,
        altstack,
        altstack_flags,
        altstack_size,
        pending: pending.iter().map(|s| s.to_vec()).collect(),
    }
}

/// `queued`, and those that wait without an entry there, as when the user's queue was full (RLIMIT_SIGPENDING): the kernel gives
/// them one of zeros, SI_USER. `bits` of SigPnd or ShdPnd were read before: what comes in between has one.
pub fn with_bare(mut queued: Vec<[u8; 128]>, bits: u64) -> Vec<[u8; 128]> {
    let entered = queued
        .iter()
        .fold(0, |all, info| all | bit(u32::from_le_bytes([info[0], info[1], info[2], info[3]])));
    let bare = bits & !entered & !bit(libc::SIGKILL as u32);
    for signal in (1..=64u32).filter(|&signal| bare & bit(signal) != 0) {
        let mut info = [0; 128];
        info[..4].copy_from_slice(&signal.to_le_bytes());
        queued.push(info);
    }
    queued
}

fn bit(signal: u32) -> u64 {
    signal.checked_sub(1).and_then(|shift| 1u64.checked_shl(shift)).unwrap_or(0)
}

const TRAP: u64 = libc::SIGTRAP as u64;

/// Signals whose action the kernel lets nobody set.
pub fn is_fixed(signal: u32) -> bool {
    signal == libc::SIGKILL as u32 || signal == libc::SIGSTOP as u32
}

/// Sets every signal of the calling skeleton to the recorded action, all others to the default.
pub fn rebuild_actions(actions: &[Action], remote: &mut Remote) -> io::Result<()> {
    let mut table = vec![[0u64; 4]; 64];
    for action in actions {
        let slot = (action.signal as usize).checked_sub(1).and_then(|i| table.get_mut(i));
        let slot =
            slot.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no such signal in the image"))?;
        *slot = [action.handler, action.flags, action.restorer, action.mask];
    }
    let bytes: Vec<u8> = table.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    let base = remote.data(&bytes)?;
    let calls: Vec<Call> = (1..=64u64)
        // SIGTRAP ends the call list itself: it is set last, by `rebuild_trap`.
        .filter(|&s| !is_fixed(s as u32) && s != TRAP)
        .map(|s| Call::new(libc::SYS_rt_sigaction, &[s, base + (s - 1) * 32, 0, 8]))
        .collect();
    all_zero(&remote.run(&calls)?)
}

/// Sets SIGTRAP's action by a stepped call; the call lists of this process end with it.
pub fn rebuild_trap(actions: &[Action], remote: &mut Remote, gadget: u64) -> io::Result<()> {
    let Some(a) = actions.iter().find(|a| a.signal == libc::SIGTRAP as u32) else { return Ok(()) };
    let bytes: Vec<u8> =
        [a.handler, a.flags, a.restorer, a.mask].iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = remote.data(&bytes)?;
    let call = Call::new(libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, at, 0, 8]);
    let result = remote.step(gadget, call)?;
    all_zero(&[result])
}

/// Sets the calling thread's alternate stack and queues its pending signals again; all signals are blocked. Those of SIGTRAP, by
/// which call lists end, come last ([`rebuild_pending_trap`]).
pub fn rebuild_thread(signals: &ThreadSignals, remote: &mut Remote, pid: u64, tid: u64) -> io::Result<()> {
    // Having none is to be said, too: a skeleton has inherited that of ckptbpf's own thread, whose memory is gone.
    let mut stack = Vec::with_capacity(24);
    stack.extend(signals.altstack.to_le_bytes());
    stack.extend(i64::from(signals.altstack_flags).to_le_bytes());
    stack.extend(signals.altstack_size.to_le_bytes());
    let at = remote.data(&stack)?;
    remote.call(libc::SYS_sigaltstack, &[at, 0])?;
    for (signal, info) in numbered(&signals.pending, |signal| signal != TRAP)? {
        let at = remote.data(info)?;
        remote.call(libc::SYS_rt_tgsigqueueinfo, &[pid, tid, signal, at])?;
    }
    Ok(())
}

/// Queues signals again that were pending for the whole process.
pub fn rebuild_shared(pending: &[Vec<u8>], remote: &mut Remote, pid: u64) -> io::Result<()> {
    for (signal, info) in numbered(pending, |signal| signal != TRAP)? {
        let at = remote.data(info)?;
        remote.call(libc::SYS_rt_sigqueueinfo, &[pid, signal, at])?;
    }
    Ok(())
}

/// Queues the SIGTRAPs that were pending for the thread, and for its process; no call list can end after that.
pub fn rebuild_pending_trap(
    (own, shared): (&[Vec<u8>], &[Vec<u8>]),
    remote: &mut Remote,
    gadget: u64,
    (pid, tid): (u64, u64),
) -> io::Result<()> {
    for (_, info) in numbered(own, |signal| signal == TRAP)? {
        let at = remote.data(info)?;
        let call = Call::new(libc::SYS_rt_tgsigqueueinfo, &[pid, tid, TRAP, at]);
        all_zero(&[remote.step(gadget, call)?])?;
    }
    for (_, info) in numbered(shared, |signal| signal == TRAP)? {
        let at = remote.data(info)?;
        let call = Call::new(libc::SYS_rt_sigqueueinfo, &[pid, TRAP, at]);
        all_zero(&[remote.step(gadget, call)?])?;
    }
    Ok(())
}

/// Those of the signals that are wanted, with their numbers.
fn numbered(pending: &[Vec<u8>], is_wanted: impl Fn(u64) -> bool) -> io::Result<Vec<(u64, &[u8])>> {
    let all = pending.iter().map(|info| Ok((signal_of(info)?, &info[..])));
    all.filter(|one| one.as_ref().map_or(true, |(signal, _)| is_wanted(*signal))).collect()
}

fn signal_of(info: &[u8]) -> io::Result<u64> {
    let bad =
        || io::Error::new(io::ErrorKind::InvalidData, "the image holds a pending signal of a wrong size");
    let number: [u8; 4] =
        info.get(..4).filter(|_| info.len() == 128).and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
    Ok(u64::from(u32::from_le_bytes(number)))
}

fn all_zero(results: &[i64]) -> io::Result<()> {
    match results.iter().find(|&&r| r < 0) {
        Some(&error) => Err(io::Error::from_raw_os_error(-error as i32)),
        None => Ok(()),
    }
}

/// The job-control signal that the process is stopped by, 0 for none. Its threads stop one after another: one that
/// was still running may have continued a process that had been seen stopped, or stopped it; then the signal is
/// pending, for the process or one of its threads. Each of the two takes the other away when it is sent (signal(7)), so only the
/// last one is there.
pub fn job_stop(seen: Option<i32>, pending: &[[u8; 128]]) -> i32 {
    let has = |signal: i32| pending.iter().any(|info| signal_of(info).is_ok_and(|is| is == signal as u64));
    match (has(libc::SIGCONT), has(libc::SIGSTOP)) {
        (true, _) => 0,
        (_, true) => libc::SIGSTOP,
        _ => seen.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_was_taken_back_while_others_ran_is_none() {
        let pending = |signal: i32| {
            let mut info = [0; 128];
            info[..4].copy_from_slice(&signal.to_le_bytes());
            [info]
        };
        assert_eq!(job_stop(Some(libc::SIGTSTP), &[]), libc::SIGTSTP);
        assert_eq!(job_stop(Some(libc::SIGSTOP), &pending(libc::SIGCONT)), 0);
        assert_eq!(job_stop(None, &pending(libc::SIGSTOP)), libc::SIGSTOP);
        assert_eq!(job_stop(None, &pending(libc::SIGCHLD)), 0);
    }
}

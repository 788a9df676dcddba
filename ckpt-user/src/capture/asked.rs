//! What no file shows, and the process is made to ask by injected system calls.

use crate::freeze::FrozenProcess;
use crate::memory::protection_keys::{self, Keys};
use crate::memory::{self, policy};
use crate::refusal::{Reading, Refusal};
use crate::sys::inject;
use crate::task::hidden::{Injector, ProcessState, ThreadState};
use crate::task::policy::Policy;
use crate::task::posix_timers::{self, PosixTimer};
use crate::task::{denials, tiles};
use std::collections::BTreeSet;

/// What only the process itself may ask.
#[derive(Default)]
pub struct Asked {
    pub timers: Vec<PosixTimer>,
    pub memory: Option<denials::Memory>,
    /// In the order of the threads.
    pub threads: Vec<(Option<Policy>, Option<denials::Instructions>)>,
    /// Of mappings, by their index.
    pub policies: Vec<(usize, Policy)>,
    pub locks_to_come: u32,
    pub protection_keys: Option<Keys>,
    pub tiles: bool,
}

/// Asks a process for the times of its POSIX timers, and for what it may have changed. Nothing is injected where there is
/// nothing of the kind.
pub fn ask(
    process: &mut FrozenProcess,
    mappings: &[memory::vma::Vma],
    (states, state, known): (&[ThreadState], &ProcessState, Option<&[memory::vma::Raw]>),
    injected: &mut u64,
) -> Result<Asked, Refusal> {
    let pid = process.pid;
    let timers = posix_timers::shown(process)?;
    let mut asked =
        Asked { timers, threads: vec![Default::default(); process.threads.len()], ..Asked::default() };
    asked.locks_to_come = state.locks_to_come.unwrap_or(0);
    let mut ranges = policy::to_ask(mappings, known);
    let is_plain = |s: &ThreadState| !s.has_policy && !s.may_be_denied;
    asked.protection_keys = state.protection_keys;
    let keys_are_known = state.protection_keys.is_some() || !protection_keys::are_here();
    let is_known = !state.may_be_denied
        && state.locks_to_come.is_some()
        && ranges.is_empty()
        && keys_are_known
        && !tiles::are_here();
    if asked.timers.is_empty() && is_known && states.iter().all(is_plain) {
        return Ok(asked);
    }
    let room = room(process, mappings)?;
    let mut injector = Injector { memory: &process.memory, room, count: 0 };
    let mut has_policies = true;
    for (i, ((thread, own), answers)) in
        process.threads.iter_mut().zip(states).zip(&mut asked.threads).enumerate()
    {
        let Some(mut stopped) = thread.stopped.take() else { continue };
        if i == 0 && (own.has_policy || !ranges.is_empty()) {
            (has_policies, stopped) = injector.has_policies(stopped).reading(pid, "its memory policy")?;
        }
        if own.has_policy && has_policies {
            (answers.0, stopped) = injector.policy(stopped, None).reading(pid, "its memory policy")?;
        }
        for (index, home) in std::mem::take(&mut ranges).into_iter().filter(|_| has_policies) {
            let (found, back) =
                injector.policy(stopped, Some(mappings[index].start)).reading(pid, "a memory policy")?;
            asked.policies.extend(found.map(|policy| (index, Policy { home, ..policy })));
            stopped = back;
        }
        if i == 0 && state.locks_to_come.is_none() {
            (asked.locks_to_come, stopped) =
                injector.locks_to_come(stopped).reading(pid, "whether its new memory is locked")?;
        }
        if i == 0 && !keys_are_known {
            let found;
            (found, stopped) = injector.protection_keys(stopped).reading(pid, "its protection keys")?;
            asked.protection_keys = Some(Keys::found(&found, mappings).reading(pid, "its protection keys")?);
        }
        if i == 0 && tiles::are_here() {
            (asked.tiles, stopped) =
                injector.tiles(stopped).reading(pid, "whether it may use tile registers")?;
        }
        if own.may_be_denied {
            (answers.1, stopped) = injector.instructions(stopped).reading(pid, "a thread")?;
        }
        if i == 0 && state.may_be_denied {
            (asked.memory, stopped) = injector.denied_memory(stopped).reading(pid, "its memory")?;
        }
        // Those of a handler, if a signal has come meanwhile.
        thread.regs = stopped.regs().reading(pid, "registers")?;
        thread.stopped = Some(stopped);
    }
    *injected += injector.count;
    if !asked.timers.is_empty() {
        time_timers(process, room, &mut asked.timers, injected)?;
    }
    Ok(asked)
}

/// Finds out what is left of POSIX timers, and which of them have rung.
fn time_timers(
    process: &mut FrozenProcess,
    room: u64,
    timers: &mut [PosixTimer],
    injected: &mut u64,
) -> Result<(), Refusal> {
    /// A timer may ring between two looks, but each of them only once while nobody takes its signal.
    const LOOKS: usize = 10;
    let pid = process.pid;
    let mut injector = Injector { memory: &process.memory, room, count: 0 };
    let mut seen = None;
    for _ in 0..LOOKS {
        let first = &mut process.threads[0];
        let Some(stopped) = first.stopped.take() else { break };
        let stopped = injector.timers(stopped, timers).reading(pid, "its POSIX timers")?;
        first.regs = stopped.regs().reading(pid, "registers")?;
        first.stopped = Some(stopped);
        let mut waiting = BTreeSet::new();
        for stopped in process.threads.iter().filter_map(|t| t.stopped.as_ref()) {
            for shared in [false, true] {
                let pending = stopped.pending(shared).reading(pid, "signals")?;
                waiting.extend(pending.iter().filter_map(posix_timers::of_signal));
            }
        }
        for timer in &mut *timers {
            // One that rings once, and is still to ring, was set anew since; of the others, only the kernel's own
            // structures tell (`posix_timers::count`).
            let is_to_ring = timer.interval == 0 && timer.left != 0;
            timer.due = waiting.contains(&timer.id) && !is_to_ring;
        }
        if seen.replace(waiting.clone()) == Some(waiting) {
            break;
        }
    }
    *injected += injector.count;
    Ok(())
}

/// Where code can be injected into a process.
pub(super) fn room(process: &FrozenProcess, mappings: &[memory::vma::Vma]) -> Result<u64, Refusal> {
    let pid = process.pid;
    let vdso = mappings.iter().find(|v| v.kind() == memory::vma::Kind::Vdso).map(|v| v.start..v.end);
    let vdso =
        vdso.ok_or_else(|| Refusal::unsupported(pid, "has no vdso", "nothing can be injected into it"))?;
    inject::find_room(&process.memory, &vdso).reading(pid, "vdso")
}

/// What /proc does not show, by injected system calls.
pub fn injected_states(
    process: &mut FrozenProcess,
    mappings: &[memory::vma::Vma],
    injected: &mut u64,
) -> Result<(Vec<ThreadState>, ProcessState), Refusal> {
    let pid = process.pid;
    let room = room(process, mappings)?;
    let mut injector = Injector { memory: &process.memory, room, count: 0 };
    let mut states = Vec::with_capacity(process.threads.len());
    let mut of_process = None;
    for thread in &mut process.threads {
        let Some(stopped) = thread.stopped.take() else { continue };
        let (state, mut stopped) = injector.thread_state(stopped).reading(pid, "a thread")?;
        if of_process.is_none() {
            let (state, back) = injector.process_state(stopped).reading(pid, "signal actions")?;
            of_process = Some(state);
            stopped = back;
        }
        // Those of a handler, if a signal has come meanwhile.
        thread.regs = stopped.regs().reading(pid, "registers")?;
        thread.stopped = Some(stopped);
        states.push(state);
    }
    *injected += injector.count;
    Ok((states, of_process.unwrap_or_default()))
}

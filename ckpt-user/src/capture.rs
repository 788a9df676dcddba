//! Everything but the pages, read from a stopped tree: one record a process, in the order of the tree.

mod asked;
mod unopened;

use crate::freeze::spent::{Spent, timed};
use crate::freeze::{FrozenProcess, FrozenTree, Member, tree};
use crate::machine;
use crate::memory::behind::Behind;
use crate::memory::protection_keys::Keys;
use crate::memory::through::Through;
use crate::memory::{self, policy, sysv, vdso};
use crate::object::{known_ends::Known, lock, owner, table, terminal::Modes};
use crate::planted;
use crate::rebuild::{self, plan};
use crate::record::{Clocks, Image, Instance, Process, Thread};
use crate::refusal::{Reading, Refusal};
use crate::sys::sched;
use crate::task::clock::{self, Cpu, Shift};
use crate::task::hidden::{ProcessState, ThreadState};
use crate::task::iterators::Hidden;
use crate::task::posix_timers::{self, PosixTimer};
use crate::task::proc::ProcDir;
use crate::task::timers::Timer;
use crate::task::zombie::{self, Zombie};
use crate::task::{
    control, credentials, dispatch, ended, filters, keyring, limits, outside, registers, scheduling,
    settings, sharing, signals, sleep, surroundings, tiles, unsupported,
};
use asked::{ask, injected_states};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::time::Instant;

/// The record of a whole tree, and what it took.
pub struct Captured {
    pub image: Image,
    /// How many system calls had to be injected.
    pub injected: u64,
    /// How many processes smaps was read of.
    pub smaps: u64,
    /// How many bytes of files were read: their ends.
    pub ends: u64,
    /// Of the freeze: descriptors, mappings and tasks.
    pub spent: Spent,
    /// Of the image's shared objects that nobody opens: what their mappings show.
    pub through: HashMap<u32, Through>,
}

/// `hidden` is what BPF iterators have read of the stopped tree; what is not in it is asked for by injected calls.
///
/// # Errors
/// A [`Refusal`] that names process and thing; the tree is unchanged and can be thawed.
pub fn capture(
    tree: &mut FrozenTree,
    standards_of: Pid,
    hidden: &Hidden,
    lazy: bool,
    known_ends: Option<&mut Known>,
) -> Result<Captured, Refusal> {
    let mut objects = memory::capture::Objects { lazy, ..Default::default() };
    let begun = Instant::now();
    let mut spent = Spent::default();
    let (mut injected, mut smaps) = (0, hidden.unnamed);
    let pids: Vec<Pid> = tree.processes.iter().map(|p| p.pid).collect();
    let members: Vec<Member> = tree.processes.iter().map(FrozenProcess::member).collect();
    members.iter().try_for_each(ended::check)?;
    sharing::check(&members)?;
    let mut zombies = zombie::capture(&pids, crate::freeze::tree::children_of)?;
    let ended: Vec<Pid> = zombies.iter().map(|z| Pid::from_raw(z.pid)).collect();
    let table =
        || table::capture(&members, &ended, standards_of, &hidden.descriptors, &mut objects, known_ends);
    let table::Captured { tables, mut descriptions, read: ends } = timed(&mut spent.descriptors, table)?;
    let (mut vdso_print, mut vdso_image) = (0, Vec::new());
    let mut filters = filters::Found::default();
    let mut processes = Vec::with_capacity(tree.processes.len());
    for (process, descriptors) in tree.processes.iter_mut().zip(tables) {
        let known = hidden.mappings.get(&process.pid).map(Vec::as_slice);
        smaps += u64::from(known.is_none());
        let mappings = || memory::capture::capture(process.reached_by(), known, &mut objects);
        let mappings = timed(&mut spent.mappings, mappings)?;
        let found = (&mut objects, &mut filters);
        let mut record =
            capture_process(process, (mappings, members[0].thread), hidden, found, &mut injected)?;
        record.descriptors = descriptors;
        if let Some(range) = record.mappings.iter().find(|v| v.kind() == memory::vma::Kind::Vdso) {
            let shown =
                vdso::look(process.reached_by(), &(range.start..range.end)).reading(process.pid, "vdso")?;
            no_call_under_way(process, &shown.behind)?;
            (vdso_print, vdso_image) = (shown.fingerprint, shown.image);
        }
        processes.push(record);
    }
    let look = || unopened::look(tree, (&processes, &descriptions), &mut objects, &mut injected);
    let through = timed(&mut spent.mappings, look)?;
    control::check(&processes)?;
    surroundings::check(&processes, &descriptions)?;
    lock::check(&processes, &descriptions, &objects.found)?;
    sysv::check(&processes, &objects.found)?;
    policy::check(&processes, &hidden.mappings, &objects.found)?;
    keyring::check(&processes)?;
    let (foreground, terminal) = foreground(&mut processes, &mut zombies)?;
    owner::settle(&mut descriptions, &processes);
    let image = Image {
        machine: Some(machine::here(vdso_print, vdso_image)),
        clocks: None,
        processes,
        descriptions,
        objects: objects.found,
        zombies,
        foreground,
        ended: None,
        terminal,
        deleted: objects.deleted,
        filters: filters.filters,
        cpu_time_before: 0,
        first_cpus: sched::affinity(tree::keeper()).unwrap_or_default(),
    };
    if let Err(error) = plan::plan(&image.nodes()) {
        return Err(Refusal::unsupported(Pid::from_raw(error.0), "cannot be made again", error.to_string()));
    }
    spent.tasks = begun.elapsed() - spent.descriptors - spent.mappings;
    Ok(Captured { image, injected, smaps, ends, spent, through })
}

fn capture_process(
    process: &mut FrozenProcess,
    (mut mappings, whose_clocks): (Vec<memory::vma::Vma>, Pid),
    hidden: &Hidden,
    (objects, filters): (&mut memory::capture::Objects, &mut filters::Found),
    injected: &mut u64,
) -> Result<Process, Refusal> {
    let (pid, via) = (process.pid, process.reached_by());
    let dir = ProcDir::process(via);
    let status = dir.status().reading(pid, "status")?;
    let others = process.threads.iter().skip(1).map(|thread| thread.tid);
    unsupported::check(via, &status, others, whose_clocks)?;
    let stat = dir.stat().reading(pid, "stat")?;
    let own_stat = ProcDir::process(pid).stat().reading(pid, "stat")?;
    process.threads.iter().filter_map(|t| t.stopped.as_ref()).try_for_each(|t| registers::check(pid, t))?;
    process.threads.iter().filter_map(|t| t.stopped.as_ref()).try_for_each(|t| tiles::check(pid, t))?;
    let (threads, state, own_keyrings) = match known_states(process, hidden) {
        Some((threads, state)) => (threads, state, hidden.own_keyrings.clone()),
        None => {
            let (threads, state) = injected_states(process, &mappings, injected)?;
            (threads, state, keyring::Known::own())
        }
    };
    unsupported::check_hidden(pid, &threads, &state)?;
    let known = hidden.mappings.get(&pid).map(Vec::as_slice);
    let asked = ask(process, &mappings, (&threads, &state, known), injected)?;
    for (index, policy) in asked.policies {
        mappings[index].policy = Some(policy);
    }
    let link = dir.path("exe");
    let target = std::fs::read_link(&link).reading(pid, "exe")?;
    let metadata = std::fs::metadata(&link).reading(pid, "exe")?;
    let executable = objects.file(&Behind::at(via, link, target, metadata));
    let executable = executable.map_err(|reason| Refusal::unsupported(pid, "runs", reason))?;
    let first = &process.threads[0];
    // While it was asked, it may have taken some.
    let waited = dir.status().and_then(|status| status.hex("ShdPnd")).reading(pid, "status")?;
    let shared =
        first.stopped.as_ref().map_or(Ok(Vec::new()), |s| s.pending(true)).reading(pid, "signals")?;
    let shared = signals::with_bare(shared, waited);
    let mut records = Vec::with_capacity(process.threads.len() + 1);
    if via != pid {
        records.push(ended::capture(pid).reading(pid, "its first thread")?);
    }
    for ((thread, state), answers) in process.threads.iter().zip(&threads).zip(asked.threads) {
        let mut record = capture_thread(process, thread, state, &asked.timers).reading(pid, "a thread")?;
        (record.policy, record.denied) = answers;
        record.keyring = keyring::capture(pid, &state.keyrings, &own_keyrings)?;
        let dir = ProcDir::thread(pid, thread.tid);
        record.personality = unsupported::personality(pid, &dir)?;
        if let Some(stopped) = &thread.stopped {
            let status = dir.status().reading(pid, "status")?;
            record.seccomp = filters::capture(pid, stopped, &status, state.filter, filters)?;
        }
        records.push(record);
    }
    let of_threads = process.threads.iter().filter_map(|t| t.stopped.as_ref()).map(|s| s.pending(false));
    let of_threads = of_threads.collect::<Result<Vec<_>, _>>().reading(pid, "signals")?;
    let waiting = [&shared[..], &of_threads.concat()].concat();
    let mut shared = posix_timers::without(shared, &asked.timers, machine::delivers_stale_rings());
    if planted::is("dropped-signal") {
        shared.pop();
    }
    Ok(Process {
        pid: pid.as_raw(),
        parent: process.parent.as_raw(),
        process_group: stat.process_group().as_raw(),
        session: stat.session().as_raw(),
        threads: records,
        space: 0,
        mappings,
        layout: Some(memory::layout::capture(via, state.brk, executable)?),
        descriptors: Vec::new(),
        actions: signals::actions(&state),
        pending: shared.iter().filter(|s| number(s) != libc::SIGSTOP).map(|s| s.to_vec()).collect(),
        limits: dir.text("limits").and_then(|t| limits::parse(&t)).reading(pid, "limits")?,
        surroundings: Some(surroundings::capture(via, &status)?),
        guards: Vec::new(),
        job_stop: signals::job_stop(process.job_stop, &waiting),
        settings: Some(settings::capture(via, &status, &state).reading(pid, "settings")?),
        timers: if state.timers.iter().all(|t| *t == Timer::default()) {
            Vec::new()
        } else {
            state.timers.to_vec()
        },
        posix_timers: asked.timers,
        denied: asked.memory,
        locks_to_come: asked.locks_to_come,
        protection_keys: asked.protection_keys.filter(|keys| *keys != Keys::default()),
        futex_slots: state.futex_slots,
        barriers: state.barriers,
        tiles: asked.tiles,
        exit_signal: own_stat.exit_signal(),
        cpu_time: clock::cpu_time(pid, Cpu::Scheduled).unwrap_or(0),
        instance: outside::known_as(pid.as_raw())
            .ok()
            .map(|pid| Instance { pid, start_time: own_stat.start_time() }),
    })
}

/// What /proc does not show, as the iterators have found it; none when a part is missing.
fn known_states(process: &FrozenProcess, hidden: &Hidden) -> Option<(Vec<ThreadState>, ProcessState)> {
    let state = hidden.processes.get(&process.pid)?.clone();
    let threads = process.threads.iter().map(|t| hidden.threads.get(&t.tid).cloned());
    Some((threads.collect::<Option<_>>()?, state))
}

/// No thread is on its way back from a system call of a ckptbpf that was killed meanwhile: after a restart there would be
/// no code for the rest of the way.
fn no_call_under_way(process: &FrozenProcess, behind: &std::ops::Range<u64>) -> Result<(), Refusal> {
    match process.threads.iter().find(|thread| behind.contains(&thread.regs.rip)) {
        Some(thread) => Err(Refusal::NotStopped(format!(
            "thread {} of process {} is on its way back from what a ckptbpf that was killed had it do; in a moment it is not",
            thread.tid,
            crate::refusal::named(process.pid)
        ))),
        None => Ok(()),
    }
}

/// `si_signo`.
fn number(info: &[u8; 128]) -> i32 {
    i32::from_le_bytes([info[0], info[1], info[2], info[3]])
}

fn capture_thread(
    process: &FrozenProcess,
    thread: &crate::freeze::FrozenThread,
    state: &ThreadState,
    timers: &[PosixTimer],
) -> std::io::Result<Thread> {
    let gone = || std::io::Error::other("the thread was lost");
    let stopped = thread.stopped.as_ref().ok_or_else(gone)?;
    let pid = process.pid;
    let dir = ProcDir::thread(pid, thread.tid);
    let mut name = dir.bytes("comm")?;
    name.truncate(name.len().saturating_sub(1));
    let status = dir.status()?;
    let pending = signals::with_bare(stopped.pending(false)?, status.hex("SigPnd")?);
    let mut pending = posix_timers::without(pending, timers, machine::delivers_stale_rings());
    // That stops the whole process, and is told by it.
    pending.retain(|info| number(info) != libc::SIGSTOP);
    Ok(Thread {
        tid: thread.tid.as_raw(),
        name,
        registers: Some(registers::capture(stopped, &thread.regs)?),
        signals: Some(signals::of_thread(stopped.sigmask()?, state, &pending)),
        credentials: Some(credentials::capture(&status, state.control.securebits)?),
        scheduling: Some(scheduling::capture(pid, thread.tid)?),
        clear_child_tid: state.clear_child_tid,
        robust_list: sched::robust_list(thread.tid)?.0,
        sleep: sleep::capture(&thread.regs, state.restart.as_ref(), &process.memory, Shift::of(thread.tid)?),
        control: Some(control::capture(&state.control, &status)),
        dispatch: dispatch::capture(stopped)?,
        // Of these, only the process's own record knows all there is to know.
        policy: None,
        denied: None,
        keyring: None,
        personality: 0,
        seccomp: None,
        ended: None,
    })
}

/// Makes the ids of sessions, groups and parents outside the tree 0, and returns the tree's group that has the
/// terminal, 0 for none or that of whoever started ckptbpf, and the modes of a terminal that the program has. An id of nobody at all is that of a leader that is gone: its group is the program's own.
fn foreground(processes: &mut [Process], zombies: &mut [Zombie]) -> Result<(i32, Option<Modes>), Refusal> {
    let inside: Vec<i32> = processes.iter().map(|p| p.pid).chain(zombies.iter().map(|z| z.pid)).collect();
    let keeper = Some(tree::keeper());
    let ours =
        [nix::unistd::getsid(keeper), nix::unistd::getpgid(keeper)].map(|id| id.map_or(0, Pid::as_raw));
    let is_outside = |id: i32| {
        !inside.contains(&id) && (ours.contains(&id) || ProcDir::process(Pid::from_raw(id)).stat().is_ok())
    };
    let (mut foreground, mut modes) = (0, None);
    for process in &mut *processes {
        let pid = Pid::from_raw(process.pid);
        let stat = ProcDir::process(pid).stat().reading(pid, "stat")?;
        for id in [&mut process.process_group, &mut process.session, &mut process.parent] {
            if is_outside(*id) {
                *id = 0;
            }
        }
        if stat.terminal() == 0 {
            continue;
        }
        if process.session != 0 {
            let what = "has a controlling terminal of its own";
            return Err(Refusal::unsupported(pid, what, "only the launcher's terminal can be given back"));
        }
        let has_it = match stat.process_group().as_raw() {
            0 => rebuild::foreground::is_ours().reading(pid, "the terminal")?,
            group => stat.foreground().as_raw() == group,
        };
        if has_it {
            foreground = process.process_group;
            modes = Modes::read().ok();
        }
    }
    for zombie in zombies {
        for id in [&mut zombie.process_group, &mut zombie.session] {
            if is_outside(*id) {
                *id = 0;
            }
        }
    }
    Ok((foreground, modes))
}

/// The clocks as the tree sees them: to be read last, so that nothing in the image has happened later than they say.
pub fn clocks(tree: &FrozenTree) -> Result<Clocks, Refusal> {
    let process = tree.processes.first().ok_or(Refusal::Ended)?;
    clocks_of(process.reached_by()).reading(process.pid, "clocks")
}

fn clocks_of(pid: Pid) -> std::io::Result<Clocks> {
    let shift = Shift::of(pid)?;
    let missing = || std::io::Error::from(std::io::ErrorKind::Unsupported);
    Ok(Clocks {
        realtime: clock::now(libc::CLOCK_REALTIME).ok_or_else(missing)?,
        monotonic: shift.now(libc::CLOCK_MONOTONIC).ok_or_else(missing)?,
        boottime: shift.now(libc::CLOCK_BOOTTIME).ok_or_else(missing)?,
    })
}

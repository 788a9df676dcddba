//! Running tree → frozen tree → running tree, with a deadline.
//!
//! ```text
//!  seize (stops nobody) ─▶ interrupt all ─▶ wait all ─┬─▶ FrozenTree ─▶ thaw (detach)
//!        ▲                                            │
//!        └── new threads or children seen ◀───────────┘
//!                          deadline passed: everyone is let go, nothing was changed
//! ```
//! Between freeze and thaw nothing is logged, compressed or written. All calls come from one OS thread.

pub mod rewind;
pub mod seen;
pub mod seize;
pub mod spent;
pub mod tree;
pub mod yama;

use crate::refusal::{Reading, Refusal, named};
use crate::sys::mem::Forced;
use crate::sys::ptrace::{self, Running, Stop, Stopped, Waited};
use crate::sys::regs::Regs;
use crate::task::clock;
use crate::task::iterators::Kernel;
use crate::task::proc::{ProcDir, is_gone};
use crate::task::registers::{self, USER_CS};
use crate::task::unsupported;
use nix::unistd::Pid;
use rewind::{Wait, Waits};
use seize::seize;
use std::cell::RefCell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long a tree may take to stand still.
pub const DEADLINE: Duration = Duration::from_millis(20);

/// One stopped thread.
#[derive(Debug)]
pub struct FrozenThread {
    pub tid: Pid,
    /// Taken out while a system call is injected.
    pub stopped: Option<Stopped>,
    /// As they are to be when the thread runs on: rewound where the stop itself caused an EINTR, and outside of an rseq
    /// critical section.
    pub regs: Regs,
}

/// One process with all its threads stopped.
#[derive(Debug)]
pub struct FrozenProcess {
    pub pid: Pid,
    pub parent: Pid,
    /// The first one comes first, unless it has ended before the others.
    pub threads: Vec<FrozenThread>,
    pub memory: Forced,
    /// The job-control signal that had stopped the process before we did.
    pub job_stop: Option<i32>,
}

/// A stopped process by its id, and by that of a thread which has not ended: /proc and system calls reach memory and descriptors
/// by that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub pid: Pid,
    /// The same as `pid`, unless the first thread has ended.
    pub thread: Pid,
}

impl FrozenProcess {
    pub fn member(&self) -> Member {
        Member { pid: self.pid, thread: self.threads.first().map_or(self.pid, |thread| thread.tid) }
    }

    /// [`Member::thread`].
    pub fn reached_by(&self) -> Pid {
        self.member().thread
    }
}

/// A tree that stands still, parents before children. Dropping it is a thaw as well.
#[derive(Debug)]
pub struct FrozenTree {
    pub processes: Vec<FrozenProcess>,
    pub since: Instant,
}

/// How often a tree that does not stand still is tried again; each try may take twice as long as the one before.
/// A vfork parent stops only when its child has executed a program, which is over in milliseconds.
const TRIES: u32 = 5;

/// How long it is tried if the thread that does not stop only waits for a processor: on a busy machine, or where its control
/// group has had what it may have of this second (`cpu.max`). Where each session has its share (sched(7), autogroup), three
/// seconds have been too short.
const WITHOUT_PROCESSOR: Duration = Duration::from_secs(10);

const ONLY_64_BIT: &str = "only 64-bit programs of x86-64 can be saved";

/// Stops every thread of the tree below `root`; `kernel` tells what is left of their timeouts.
///
/// # Errors
/// [`Refusal::NotStopped`] names the thread, its system call and wait channel when the last deadline passes, or
/// the other tracer; everyone runs on.
pub fn freeze(root: Pid, kernel: &Kernel) -> Result<FrozenTree, Refusal> {
    let begun = Instant::now();
    let mut attempt = 0;
    loop {
        let longer = 2u32.pow(attempt.min(TRIES - 1));
        // Before anybody is seized, whom a signal stops from then on; of some only those that are seized are told.
        let waits = kernel.tells_of_all().then(|| known_waits(kernel.waits(root)));
        let stopping = Stopping { stopped: Vec::new(), asked: Vec::new(), waits, kernel, root };
        let GivenUp { why, has_no_processor } = match try_freeze(stopping, DEADLINE * longer) {
            Ok(tree) => {
                WAITS.take();
                return Ok(tree);
            }
            Err(given_up) => given_up,
        };
        attempt += 1;
        let may_stop = attempt < TRIES || (has_no_processor && begun.elapsed() < WITHOUT_PROCESSOR);
        if !may_stop || !matches!(why, Refusal::NotStopped(_)) {
            return Err(why);
        }
        // Who has no processor gets on with what there is of it.
        let pause = if attempt < TRIES { Duration::from_millis(2) } else { Duration::from_millis(10) };
        std::thread::sleep(pause * longer);
    }
}

/// Why one try was given up.
struct GivenUp {
    why: Refusal,
    /// The thread that did not stop could run, and does not get to, or has just got to.
    has_no_processor: bool,
}

impl From<Refusal> for GivenUp {
    fn from(why: Refusal) -> Self {
        Self { why, has_no_processor: false }
    }
}

/// What has been stopped so far. Dropping it lets everyone run on.
struct Stopping<'a> {
    stopped: Vec<(Pid, Pid, Stopped)>,
    /// Asked to stop, not seen to stand yet.
    asked: Vec<(Pid, Running)>,
    /// What they wait in, once that was asked.
    waits: Option<Waits>,
    kernel: &'a Kernel,
    root: Pid,
}

impl Stopping<'_> {
    /// What they wait in: asked before the first of them is interrupted.
    fn waits(&mut self) -> &Waits {
        self.waits.get_or_insert_with(|| known_waits(self.kernel.waits(self.root)))
    }

    /// A process whose first thread has ended, and that is on its way out. Its other threads are asked for again.
    ///
    /// Who ends as a whole has SIGKILL in each thread before the first of them is gone, and such a thread neither stops
    /// nor stands any longer. So one that does stand goes on for good, without its first.
    fn on_its_way_out(&mut self, members: &[(Pid, Pid)]) -> Option<Pid> {
        let first: HashSet<Pid> = self.stopped.iter().filter(|s| s.0 == s.1).map(|s| s.0).collect();
        let stands = |pid| self.stopped.iter().any(|s| s.0 == pid && s.2.regs().is_ok());
        let mut without_first = members.iter().map(|m| m.0).filter(|pid| !first.contains(pid));
        let pid = without_first.find(|&pid| tree::has_lost_its_first_thread(pid) && !stands(pid))?;
        let others = self.stopped.extract_if(.., |s| s.0 == pid);
        self.asked.extend(others.map(|(_, _, thread)| (pid, thread.runs())));
        Some(pid)
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        if self.stopped.is_empty() && self.asked.is_empty() {
            return;
        }
        let waits = self.waits().clone();
        for (pid, tid, thread) in self.stopped.drain(..) {
            let_go(pid, tid, thread, &waits);
        }
        // Some may have been seized and not asked yet.
        self.asked.iter().for_each(|(_, running)| running.interrupt().unwrap_or_default());
        let soon = Instant::now() + Duration::from_millis(5);
        for (pid, running) in self.asked.drain(..) {
            let tid = running.tid();
            // One that does not stop yet is let go when it does: by the supervisor, or by the next freeze.
            if let Ok(Waited::Stopped(thread)) = running.wait(Some(soon)) {
                let_go(pid, tid, thread, &waits);
            }
        }
    }
}

thread_local! {
    /// What threads waited in when they were first asked to stop. One that gets no processor waits no longer, and stands only after
    /// the freeze has been given up: when its wait was to end is then known from here alone.
    static WAITS: RefCell<Waits> = RefCell::default();
}

/// With those of whom the freezes before were given up, which [`left`] tells from later waits of the same threads.
fn known_waits(now: Waits) -> Waits {
    WAITS.with_borrow_mut(|known| {
        known.extend(now);
        known.clone()
    })
}

/// Lets a thread run on that stands only now, after the freeze that had asked it to was given up.
pub fn let_go_late(tid: Pid, stop: Stop) {
    WAITS.with_borrow(|waits| let_go(tid, tid, ptrace::found_standing(tid, stop), waits));
}

/// Lets a thread run on that was stopped in vain, without an EINTR from it, and its wait no longer than it was.
fn let_go(pid: Pid, tid: Pid, thread: Stopped, waits: &Waits) {
    if let Ok(mut regs) = thread.regs()
        && rewind::rewind(&mut regs)
    {
        // Its own: the process's directory leads to no memory where the first thread has ended.
        if let Some(left) = waits.get(&tid).and_then(|wait| left(pid, tid, &regs, wait))
            && let Ok(memory) = Forced::open(tid)
        {
            // Without it the whole time begins anew.
            let _ = rewind::shorten(&mut regs, left, &memory);
        }
        let _ = thread.set_regs(&regs);
    }
    // ESRCH: it was killed meanwhile, which is its right.
    let _ = thread.detach();
}

fn try_freeze(mut stopping: Stopping<'_>, deadline: Duration) -> Result<FrozenTree, GivenUp> {
    let root = stopping.root;
    let mut since = None;
    let (mut looked_at, mut ended) = (HashSet::new(), HashSet::new());
    loop {
        let members = tree::all_members(root).reading(root, "its children")?;
        if members.is_empty() {
            return Err(Refusal::Ended.into());
        }
        // Those that have ended meanwhile are none: the id of a first thread may be another one's by now.
        let asked = stopping.asked.iter().map(|(_, running)| running.tid());
        let mut known: HashSet<Pid> = stopping.stopped.iter().map(|&(_, tid, _)| tid).chain(asked).collect();
        let mut is_whole = true;
        for &(pid, _) in &members {
            // Before it is stopped: what it waits in would have to be rewound by other numbers.
            if looked_at.insert(pid) && unsupported::is_32_bit(pid) {
                return Err(Refusal::unsupported(pid, "is a 32-bit program", ONLY_64_BIT).into());
            }
            let threads = ProcDir::process(pid).numbers("task");
            let threads = threads.or_else(|e| if is_gone(&e) { Ok(Vec::new()) } else { Err(e) });
            for tid in threads.reading(pid, "its threads")?.into_iter().map(Pid::from_raw) {
                if known.insert(tid) {
                    match seize(pid, tid)? {
                        Some(running) => stopping.asked.push((pid, running)),
                        // A list ends early at a thread that ends while it is made (`next_tid` of fs/proc/base.c).
                        None => is_whole &= !ended.insert(tid),
                    }
                }
            }
        }
        stopping.waits();
        let since = *since.get_or_insert_with(Instant::now);
        if stopping.asked.is_empty() && is_whole {
            let Some(pid) = stopping.on_its_way_out(&members) else { break };
            if Instant::now() >= since + deadline {
                return Err(does_not_end(pid).into());
            }
            std::thread::sleep(Duration::from_micros(40));
        }
        for (_, running) in &stopping.asked {
            // A thread that has ended meanwhile is noticed by the wait.
            let _ = running.interrupt();
        }
        while let Some((pid, running)) = stopping.asked.pop() {
            let tid = running.tid();
            match wait_one(pid, running, since + deadline)? {
                Ok(Some(thread)) => stopping.stopped.push((pid, tid, thread)),
                Ok(None) => {}
                Err(running) => {
                    let state = ProcDir::thread(pid, tid).stat().map(|stat| stat.state());
                    let has_no_processor = state.is_ok_and(|state| matches!(state, 'R' | 't'));
                    let why = does_not_stop(pid, tid);
                    stopping.asked.push((pid, running));
                    return Err(GivenUp { why, has_no_processor });
                }
            }
        }
    }
    let members = tree::all_members(root).reading(root, "its children")?;
    Ok(assemble(&members, stopping, since.unwrap_or_else(Instant::now))?)
}

/// A process that has ended, but for some of its threads.
pub fn does_not_end(pid: Pid) -> Refusal {
    Refusal::NotStopped(format!("process {} is on its way out", named(pid)))
}

fn does_not_stop(pid: Pid, tid: Pid) -> Refusal {
    let dir = ProcDir::thread(pid, tid);
    let text = |name| dir.text(name).map(|t| t.trim().to_owned()).unwrap_or_default();
    Refusal::NotStopped(format!(
        "thread {tid} of process {} does not stop (system call {}, waiting in {})",
        named(pid),
        text("syscall").split(' ').next().unwrap_or("?"),
        text("wchan")
    ))
}

/// Waits until the thread stands at a PTRACE_EVENT_STOP; signals on their way are given to it first. The inner
/// error is the thread that still runs at the deadline; `None`: it has ended.
fn wait_one(pid: Pid, running: Running, until: Instant) -> Result<Result<Option<Stopped>, Running>, Refusal> {
    let mut running = running;
    loop {
        let waited = running.wait(Some(until));
        if waited.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ECHILD)) {
            // It has executed a program, and has the id of the first thread since.
            return Err(Refusal::NotStopped(format!("process {} executes a program", named(pid))));
        }
        match waited.reading(pid, "a stop")? {
            Waited::Died(_) => return Ok(Ok(None)),
            Waited::TimedOut(running) => return Ok(Err(running)),
            Waited::Stopped(stopped) => match stopped.stop() {
                Stop::Interrupted | Stop::Group(_) => return Ok(Ok(Some(stopped))),
                Stop::Signal(signal) => {
                    running = stopped.cont_interrupted(signal).reading(pid, "a signal")?;
                }
                _ => {
                    running = stopped.cont_interrupted(0).reading(pid, "an event")?;
                }
            },
        }
    }
}

fn assemble(members: &[(Pid, Pid)], mut rest: Stopping<'_>, since: Instant) -> Result<FrozenTree, Refusal> {
    let mut tree = FrozenTree { processes: Vec::new(), since };
    let (waits, looks) = (rest.waits().clone(), !rest.kernel.has_iterators());
    // A thread leaves `rest` only for the tree: whatever fails, one of the two lets it run on.
    while let Some(&(pid, tid, ref thread)) = rest.stopped.last() {
        let processes = &mut tree.processes;
        let job_stop = if let Stop::Group(signal) = thread.stop() { Some(signal) } else { None };
        let mut regs = match thread.regs() {
            Ok(regs) => regs,
            // Killed while it stood: what is left of the process is no whole one.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(does_not_end(pid)),
            Err(e) => return Err(e).reading(pid, "registers"),
        };
        if regs.cs != USER_CS {
            return Err(Refusal::unsupported(pid, "has a thread in 32-bit code", ONLY_64_BIT));
        }
        let at = match processes.iter().position(|p| p.pid == pid) {
            Some(at) => at,
            None => {
                let memory = Forced::open(tid).reading(pid, "memory")?;
                let parent = members.iter().find(|m| m.0 == pid).map_or(Pid::from_raw(0), |m| m.1);
                processes.push(FrozenProcess { pid, parent, threads: Vec::new(), memory, job_stop });
                processes.len() - 1
            }
        };
        let process = &mut processes[at];
        let is_rewound = rewind::rewind(&mut regs);
        if is_rewound {
            let memory = &process.memory;
            match waits.get(&tid).and_then(|wait| left(pid, tid, &regs, wait)) {
                Some(left) => rewind::shorten(&mut regs, left, memory).reading(pid, "a timeout")?,
                None if looks => rewind::copy_timeout(&mut regs, memory),
                None => {}
            }
        }
        if registers::abort_section(thread, &mut regs) || is_rewound {
            thread.set_regs(&regs).reading(pid, "registers")?;
        }
        let stopped = rest.stopped.pop().map(|(.., thread)| thread);
        process.threads.push(FrozenThread { tid, stopped, regs });
    }
    let processes = &mut tree.processes;
    for process in processes.iter_mut() {
        process.threads.sort_by_key(|t| (t.tid != process.pid, t.tid));
    }
    let order = |pid: Pid| members.iter().position(|m| m.0 == pid).unwrap_or(usize::MAX);
    processes.sort_by_key(|p| order(p.pid));
    if members.is_empty() {
        return Err(Refusal::Ended);
    }
    match members.iter().find(|m| processes.iter().all(|p| p.pid != m.0)) {
        Some(&(pid, _)) => Err(does_not_end(pid)),
        None => Ok(tree),
    }
}

/// What is left of `wait`, nanoseconds, if the stop ended that very wait: it was the thread's last context switch but
/// the one into the stop.
fn left(pid: Pid, tid: Pid, regs: &Regs, wait: &Wait) -> Option<u64> {
    let switches = ProcDir::thread(pid, tid)
        .status()
        .ok()?
        .decimal("voluntary_ctxt_switches")
        .ok()?
        .checked_sub(wait.switches)?;
    if switches > 1 || regs.orig_rax != wait.number {
        return None;
    }
    let now = clock::now(libc::CLOCK_MONOTONIC)? - clock::own_offsets().ok()?.0;
    Some(wait.expires.saturating_sub(u64::try_from(now).ok()?))
}

impl FrozenTree {
    /// Ends everything where it stands.
    pub fn kill(self) {
        for process in &self.processes {
            // ESRCH: it is gone already.
            let _ = nix::sys::signal::kill(process.pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Lets everything run on; returns how long it stood still.
    pub fn thaw(mut self) -> Duration {
        self.let_go();
        self.since.elapsed()
    }

    fn let_go(&mut self) {
        // Children before parents, as they were born: a vfork parent waits for its child anyway.
        for process in self.processes.drain(..).rev() {
            for stopped in process.threads.into_iter().filter_map(|t| t.stopped) {
                // ESRCH: it was killed meanwhile, which is its right.
                let _ = stopped.detach();
            }
        }
    }
}

impl Drop for FrozenTree {
    fn drop(&mut self) {
        self.let_go();
    }
}

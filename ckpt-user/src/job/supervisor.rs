//! The supervisor: one thread that is the program's parent, tracer and clock.
//!
//! ```text
//!             ┌── SIGCHLD: reap ──────────────── last one gone ─▶ Ended
//!   poll ─────┼── signal: forward │ checkpoint
//!     ▲       ├── interval due │ request ─▶ its maker ─▶ done │ failed (said once)
//!     └───────┴── task for the tracer (freeze, arm, thaw)
//! ```
//! Between checkpoints nothing is traced.

use super::checkpoint::{After, CheckpointError, Checkpointer};
use super::control::{CheckpointDone, Control, ControlRequest, JobStatus, Reply, ReplyTo, Request};
use super::ended::{self, Ended};
use super::interval::Schedule;
use super::lazy::Lazy;
use super::maker::{Maker, News};
use super::options::{Cause, ends_program};
use super::parent::{self, Parent};
use super::signals::Meaning;
use super::terminal;
use super::tracer::{Tasks, channel};
use crate::daemon::link::Heir;
use crate::freeze::{self, tree};
use crate::sys::pidfd;
use crate::sys::wait::{self, Change};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How a job is supervised.
pub struct Plan {
    pub root: Pid,
    pub interval: Option<Duration>,
    pub exit_after_checkpoint: bool,
    pub checkpoint_signal: Option<i32>,
    /// SIGTERM asks for a checkpoint that is also the end.
    pub term_ends: bool,
    pub control: Option<Control>,
    /// While a lazy restart is not over.
    pub lazy: Option<Lazy>,
    /// As a person would type it.
    pub dir: PathBuf,
    /// For a program that is not our child: readable once its first process has ended.
    pub attached: Option<OwnedFd>,
    /// How the first process ended, once it has.
    pub ended: Arc<OnceLock<Ended>>,
    /// What to tell as soon as another worker could do what this one does.
    pub heir: Option<Heir>,
}

/// How long a program that is not our child may go on after its first process, before we look again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long its parent may take to wait for it.
const NEWS_OF_ITS_END: Duration = Duration::from_secs(1);

/// A SIGTERM that is to be the end, with a checkpoint.
#[derive(Debug, Clone, Copy)]
struct Term {
    /// The program has got it, too.
    is_everyones: bool,
    /// Its checkpoint is being made.
    is_tried: bool,
}

struct Supervisor {
    plan: Plan,
    began: Instant,
    schedule: Schedule,
    tasks: Tasks,
    maker: Maker,
    /// Here while the maker has nothing to do.
    idle: Option<Box<Checkpointer>>,
    /// The maker has failed: there are no more checkpoints.
    is_broken: bool,
    waiting: Vec<ReplyTo>,
    queued: Vec<(ReplyTo, bool)>,
    asked_by_signal: bool,
    term: Option<Term>,
    last: Option<(u64, Instant)>,
    taken: u64,
    last_error: Option<String>,
    killed_by_us: bool,
    let_go: Option<i32>,
    /// The program has stopped, and we have not: others of it may wait for pages that we serve.
    stops_later: bool,
    /// Its front says that nothing is left of the program.
    is_over: bool,
    /// Somebody has asked for the end of the program.
    is_to_end: bool,
}

/// Supervises until the last process of the tree is gone.
///
/// # Errors
/// Only when the supervisor itself cannot go on (poll, eventfd).
pub fn supervise(plan: Plan, parent: &mut Parent, checkpointer: Checkpointer) -> std::io::Result<Ended> {
    let (tracer, tasks) = channel()?;
    let began = Instant::now();
    let schedule = Schedule::new(plan.interval, Duration::ZERO);
    let last = checkpointer.parent.map(|id| (id.0, began));
    let mut supervisor = Supervisor {
        plan,
        began,
        schedule,
        tasks,
        maker: Maker::new(tracer),
        idle: Some(Box::new(checkpointer)),
        is_broken: false,
        waiting: Vec::new(),
        queued: Vec::new(),
        asked_by_signal: false,
        term: None,
        last,
        taken: 0,
        last_error: None,
        killed_by_us: false,
        let_go: None,
        stops_later: false,
        is_over: false,
        is_to_end: false,
    };
    let ended = supervisor.run(parent)?;
    supervisor.say_end(ended);
    Ok(ended)
}

impl Supervisor {
    fn run(&mut self, parent: &mut Parent) -> std::io::Result<Ended> {
        loop {
            self.may_be_replaced(parent);
            self.sleep(parent)?;
            self.tasks.run_all();
            while let Some(news) = parent.take() {
                self.told(news);
            }
            while let Some(news) = self.news(Duration::ZERO) {
                self.take_in(news);
            }
            while let Some(request) = self.plan.control.as_ref().and_then(Control::try_recv) {
                self.request(request);
            }
            if self.reap(parent) {
                self.last_checkpoint();
                return Ok(self.ended());
            }
            if self.is_to_end {
                // Whom they have forked meanwhile is met at the next look.
                tree::members(self.plan.root).iter().for_each(|one| wait::send(one.0, libc::SIGKILL));
            }
            self.lazy();
            self.stop_with_the_program(parent);
            self.start_if_due();
        }
    }

    /// Of a maker that is at work.
    fn news(&self, wait: Duration) -> Option<News> {
        if self.idle.is_some() || self.is_broken { None } else { self.maker.news(wait) }
    }

    fn take_in(&mut self, news: News) {
        match news {
            News::Made(result) => self.finished(result),
            News::Idle(checkpointer) => self.idle = Some(checkpointer),
            News::Dead => {
                self.is_broken = true;
                log::warn!("a checkpoint has failed in a way that it never should: there are no more");
                self.finished(Err(CheckpointError::NoMaker));
            }
        }
    }

    /// The program is gone: what the maker still does (a commit that is also the end) counts.
    fn last_checkpoint(&mut self) {
        self.maker.last();
        while self.idle.is_none() && !self.is_broken {
            self.tasks.run_all();
            if let Some(news) = self.news(Duration::from_millis(1)) {
                self.take_in(news);
            }
        }
    }

    fn sleep(&self, parent: &Parent) -> std::io::Result<()> {
        let now = self.began.elapsed();
        // Rounded up: waking early would only find nothing due.
        let wait = self.schedule.wait(now).filter(|_| self.idle.is_some()).map(|w| w.as_millis() + 1);
        let lazy = self.plan.lazy.as_ref().filter(|_| self.idle.is_some()).and_then(Lazy::wait);
        let wait = [wait, lazy.map(|w| w.as_millis() + 1)].into_iter().flatten().min();
        let gone = self.plan.attached.as_ref().filter(|fd| is_readable(fd));
        let wait = if gone.is_some() || self.is_to_end { Some(LOOK_AGAIN.as_millis()) } else { wait };
        let timeout = wait.map_or(PollTimeout::NONE, |ms| {
            PollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.tasks.wake_fd(), PollFlags::POLLIN)];
        fds.extend(parent.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        if let Some(root) = self.plan.attached.as_ref().filter(|_| gone.is_none()) {
            fds.push(PollFd::new(root.as_fd(), PollFlags::POLLIN));
        }
        if let Some(control) = &self.plan.control {
            fds.push(PollFd::new(control.wake_fd(), PollFlags::POLLIN));
        }
        if let Some(news) = self.plan.lazy.as_ref().and_then(Lazy::fd) {
            fds.push(PollFd::new(news, PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn told(&mut self, news: parent::News) {
        match news {
            parent::News::Signal(meaning) => self.signal(meaning),
            parent::News::Ended(ended) => {
                let _ = self.plan.ended.set(ended);
            }
            parent::News::Over => self.is_over = true,
        }
    }

    fn signal(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Child | Meaning::Woken => {}
            Meaning::Forward(signal) | Meaning::Everyones(signal)
                if Some(signal) == self.plan.checkpoint_signal =>
            {
                self.asked_by_signal = true;
            }
            Meaning::Forward(libc::SIGTERM) | Meaning::Everyones(libc::SIGTERM) if self.plan.term_ends => {
                // Batch systems may send it more than once.
                let is_everyones = matches!(meaning, Meaning::Everyones(_));
                self.term.get_or_insert(Term { is_everyones, is_tried: false });
            }
            Meaning::Everyones(_) => {}
            Meaning::Forward(signal) if self.plan.attached.is_some() => {
                // Attached ckptbpf is nobody's stand-in: it ends, the program goes on.
                self.let_go = Some(signal);
            }
            Meaning::Forward(signal) => self.pass_on(signal),
        }
    }

    /// Once the program has ended, its id may be somebody else's: what it has left behind is meant.
    fn pass_on(&self, signal: i32) {
        if self.plan.ended.get().is_some() {
            tree::members(self.plan.root).into_iter().for_each(|(pid, _)| wait::send(pid, signal));
        } else {
            wait::send(self.plan.root, signal);
        }
    }

    fn request(&mut self, request: ControlRequest) {
        match request.kind {
            Request::Checkpoint { kill } => self.queued.push((request.reply, kill)),
            Request::Status => {
                let status = self.status();
                request.reply.send(Reply::Status(status));
            }
            Request::Interval { microseconds } => {
                self.plan.interval = Some(Duration::from_micros(microseconds)).filter(|i| !i.is_zero());
                self.schedule = Schedule::new(self.plan.interval, self.began.elapsed());
                let status = self.status();
                request.reply.send(Reply::Status(status));
            }
            Request::Kill => {
                self.is_to_end = true;
                let status = self.status();
                request.reply.send(Reply::Status(status));
            }
        }
    }

    fn status(&self) -> JobStatus {
        JobStatus {
            ok: true,
            pid: self.plan.root.as_raw(),
            processes: tree::members(self.plan.root).len() as u64,
            interval_s: self.plan.interval.map(|i| i.as_secs_f64()),
            last_id: self.last.map(|l| l.0),
            last_age_s: self.last.map(|l| l.1.elapsed().as_secs_f64()),
            checkpoints: self.taken,
            failures: u64::from(self.schedule.failures()),
            last_error: self.last_error.clone(),
            busy: self.idle.is_none() && !self.is_broken,
            pages_missing: self.plan.lazy.as_ref().map(Lazy::missing),
        }
    }

    /// A lazy restart that has come to its end is handed over between checkpoints.
    fn lazy(&mut self) {
        let Some(lazy) = &mut self.plan.lazy else { return };
        lazy.look();
        if let Some(checkpointer) = &self.idle {
            lazy.hand_over(self.plan.root, &checkpointer.tracked, &checkpointer.kernel);
        }
    }

    /// Not while pages are missing that this process alone has.
    fn may_be_replaced(&mut self, parent: &Parent) {
        if self.plan.lazy.as_ref().is_none_or(Lazy::is_over)
            && let Some(heir) = self.plan.heir.take()
        {
            parent.may_be_replaced(heir);
        }
    }

    /// Once nobody waits for pages, or for what unmaps or forks to be noticed. Should it have gone on unseen, that ends the stop at once.
    fn stop_with_the_program(&mut self, parent: &mut Parent) {
        let is_over = self.plan.lazy.as_ref().is_none_or(Lazy::is_over);
        if self.stops_later && is_over && (self.idle.is_some() || self.is_broken) {
            self.stops_later = false;
            parent.stop_with(self.plan.root);
        }
    }

    fn start_if_due(&mut self) {
        let now = self.began.elapsed();
        let due = self.schedule.due().is_some_and(|due| due <= now);
        let is_asked =
            self.asked_by_signal || self.term.is_some_and(|term| !term.is_tried) || !self.queued.is_empty();
        // What has been ended with its last checkpoint is there a moment longer: who asks now is too late.
        let is_ending = self.killed_by_us || self.is_to_end;
        if is_ending || !(due || is_asked) {
            return;
        }
        if self.is_broken {
            self.refuse_all();
            return;
        }
        let Some(checkpointer) = self.idle.take() else {
            // Who asks does not wait for old checkpoints to be merged.
            if is_asked {
                self.maker.hurry();
            }
            return;
        };
        self.schedule.started();
        let ends = |cause| ends_program(cause, self.plan.exit_after_checkpoint, self.plan.checkpoint_signal);
        let kill = self.queued.iter().any(|q| ends(Cause::Request { kill: q.1 }))
            || (self.asked_by_signal && ends(Cause::Signal))
            || self.term.is_some()
            || (due && ends(Cause::Interval));
        self.take_in_wishes();
        let after = if kill { After::Kill } else { After::Continue };
        if let Err((checkpointer, source)) = self.maker.make(checkpointer, after) {
            self.idle = Some(checkpointer);
            self.finished(Err(CheckpointError::Io { what: "cannot start a thread for it", source }));
        }
    }

    fn refuse_all(&mut self) {
        self.take_in_wishes();
        self.finished(Err(CheckpointError::NoMaker));
    }

    /// Whoever has asked is answered by the next checkpoint.
    fn take_in_wishes(&mut self) {
        self.asked_by_signal = false;
        self.term.iter_mut().for_each(|term| term.is_tried = true);
        self.waiting.extend(self.queued.drain(..).map(|q| q.0));
    }

    fn finished(&mut self, result: Result<CheckpointDone, CheckpointError>) {
        let now = self.began.elapsed();
        match result {
            Ok(done) => {
                self.schedule.succeeded(now);
                self.last = Some((done.id, Instant::now()));
                self.taken += 1;
                self.last_error = None;
                self.killed_by_us |= done.killed;
                log::info!("{}", terminal::checkpoint_line(&done));
                for reply in self.waiting.drain(..) {
                    reply.send(Reply::Checkpoint(done.clone()));
                }
            }
            Err(error) => {
                self.schedule.failed(now);
                let text = format!("no checkpoint: {:#}", anyhow::Error::from(error));
                // At its end a program is often caught halfway; that is no failure to speak of.
                if wait::is_alive(self.plan.root) {
                    log::warn!("{text}");
                }
                for reply in self.waiting.drain(..) {
                    reply.send(Reply::Error { error: text.clone() });
                }
                self.last_error = Some(text);
                if let Some(term) = self.term.take_if(|term| term.is_tried)
                    && !term.is_everyones
                {
                    log::warn!("there is no checkpoint to end it with: the program gets SIGTERM");
                    self.pass_on(libc::SIGTERM);
                }
            }
        }
    }

    /// Takes in what children do; true when none is left.
    fn reap(&mut self, parent: &Parent) -> bool {
        loop {
            match wait::next_change() {
                Ok(Some((pid, Change::Ended(ended)))) if pid == self.plan.root => {
                    // That of a first process which had ended before the checkpoint stays.
                    let _ = self.plan.ended.set(ended);
                }
                // A thread that stopped for a freeze which had been given up by then.
                Ok(Some((pid, Change::TraceStop(stop)))) => freeze::let_go_late(pid, stop),
                Ok(Some((pid, Change::Stopped))) if pid == self.plan.root => {
                    self.stops_later = true;
                }
                Ok(Some((pid, Change::Continued))) if pid == self.plan.root => self.stops_later = false,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) if self.plan.attached.is_none() && parent.is_front() => {
                    return self.is_over;
                }
                Ok(None) => return self.plan.ended.get().is_some() && tree::only_strangers_left(),
                Err(_) => return self.plan.attached.as_ref().is_none_or(|root| self.is_over(root)),
            }
        }
    }

    /// Whether a program that is not our child is gone, or no longer ours to watch.
    fn is_over(&self, root: &OwnedFd) -> bool {
        self.let_go.is_some() || (is_readable(root) && tree::members(self.plan.root).is_empty())
    }

    fn ended(&self) -> Ended {
        if let Some(signal) = self.let_go {
            return Ended::Signaled(signal);
        }
        if self.killed_by_us {
            return Ended::Checkpointed;
        }
        // Whoever was ended as was asked has not failed.
        let by_signal = self.plan.ended.get().is_none_or(|ended| *ended == Ended::Signaled(libc::SIGKILL));
        if self.is_to_end && by_signal {
            return Ended::Exited(0);
        }
        if self.plan.lazy.as_ref().is_some_and(Lazy::has_failed) {
            return Ended::Exited(ended::FAILED);
        }
        self.plan.ended.get().copied().unwrap_or_else(|| self.ended_elsewhere())
    }

    /// How a program has ended that another process waits for, which may take a moment.
    fn ended_elsewhere(&self) -> Ended {
        let until = Instant::now() + NEWS_OF_ITS_END;
        while let Some(root) = &self.plan.attached {
            let told = pidfd::exit_status(root.as_fd());
            let is_told = told.is_ok() && Instant::now() < until;
            match (told, wait::of_zombie(self.plan.root)) {
                (Ok(Some(status)), _) => return Ended::from_wait(status),
                (_, Some(zombie)) if !is_told => return zombie,
                _ if !is_told => {
                    log::warn!("how the program ended is known to its parent alone; it counts as 0 here");
                    break;
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Ended::Exited(0)
    }

    fn say_end(&self, ended: Ended) {
        let last = self.last.map(|(id, at)| (id, at.elapsed()));
        match ended {
            Ended::Checkpointed => {
                terminal::say(&terminal::checkpointed_line(last.map_or(0, |l| l.0), &self.plan.dir));
            }
            Ended::Signaled(_) if self.let_go.is_none() => {
                terminal::say(&terminal::end_line(last, &self.plan.dir));
            }
            Ended::Exited(_) | Ended::Signaled(_) | Ended::Detached => {}
        }
    }
}

fn is_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

//! From the program's start to its end.
//!
//! ```text
//!          ┌── SIGCHLD: reap ───── Ended, Over ──▶ worker
//!   poll ──┼── signal: to the program │ Signal ──▶ worker
//!     ▲    ├── init: Stopped
//!     ▲    └── worker: Program │ Running │ Heir │ Admit │ Done ──▶ exit status
//!                └── killed: another one ([`super::again`])
//! ```
//! After a restart the child is init of the program's namespace, which ends as the program has ended ([`super::init`]), and tells
//! the worker itself. Where there is no such namespace, it is one of the processes that are forked here for the worker ([`birth`]):
//!
//! ```text
//!   poll ◀── worker: Fork, Terminal, Foreground, …, Program │ Done
//! ```

use super::admit;
use super::again::{Again, Step};
use super::birth;
use super::door::NoDoor;
use super::init;
use crate::daemon::link::{Heard, Heir, Link, Run, Started, Word};
use crate::freeze::{self, tree};
use crate::job::ended::{self, Ended};
use crate::job::options;
use crate::job::signals::{Meaning, Signals};
use crate::job::terminal;
use crate::object;
use crate::sys::pidfd;
use crate::sys::wait::{self, Change};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a worker may take from the program's start to its first word.
const SILENCE: Duration = Duration::from_secs(30);

/// 128 and the number of SIGKILL.
const KILLED: u8 = 137;

/// Until then, between two looks.
const LOOK_AGAIN: u16 = 1000;

/// What the front's child is.
pub enum Child {
    /// The program's first process.
    Program,
    /// Init of its namespace, which tells when the program has stopped.
    Init(Link),
    /// The program's first process, once a restart has made it.
    Restarted,
}

/// Why there is no worker in the place of one that was killed.
enum Lost {
    Killed,
    /// It has said why.
    Ended,
    Refused(NoDoor),
}

/// A program, or its init, that is our child.
pub struct Front<'a> {
    signals: Signals,
    /// None before a restart has made it.
    child: Option<Pid>,
    kind: Child,
    /// Signals that are the worker's ([`options::bit`]).
    kept: u64,
    /// The program's first process; none before it runs.
    program: Option<(OwnedFd, Pid)>,
    ended: Option<Ended>,
    /// None once it is gone.
    worker: Option<Link>,
    /// What the one in its place has to know; none while there can be no other one.
    heir: Option<Heir>,
    again: Again,
    /// The worker that is there now has the job.
    is_at_work: bool,
    /// The worker has seen the program: what ends before that stays there to be seen.
    is_known: bool,
    begun: Instant,
    /// Nothing is left of the program.
    is_over: bool,
    /// The worker's last word.
    done: Option<u8>,
    running: &'a mut dyn FnMut(),
}

impl<'a> Front<'a> {
    pub fn of(
        child: Option<Pid>,
        kind: Child,
        signals: Signals,
        (again, worker): (Again, Link),
        running: &'a mut dyn FnMut(),
    ) -> io::Result<Self> {
        let program = match (&kind, child) {
            // One that has ended already is there until it is reaped.
            (Child::Program, Some(child)) => Some((pidfd::open(child)?, child)),
            _ => None,
        };
        Ok(Self {
            signals,
            child,
            program,
            kind,
            kept: 0,
            ended: None,
            worker: Some(worker),
            heir: None,
            again,
            is_at_work: false,
            is_known: false,
            begun: Instant::now(),
            is_over: false,
            done: None,
            running,
        })
    }

    /// The same, which keeps signals for the worker.
    #[must_use]
    pub fn keeping(self, kept: u64) -> Self {
        Self { kept, ..self }
    }

    /// Returns how the program has ended.
    ///
    /// # Errors
    /// It cannot be waited for (poll).
    pub fn serve(mut self) -> io::Result<Ended> {
        self.tell_of_child(&self.started());
        loop {
            let is_alone = self.worker.is_none() || self.done.is_some();
            if self.is_over && is_alone {
                return Ok(self.ended_as());
            }
            if self.child.is_none() && is_alone {
                // What was made of the program has not run, and ends with its tracer or with this.
                return Ok(Ended::Exited(self.done.unwrap_or(ended::FAILED)));
            }
            self.sleep()?;
            self.listen();
            self.listen_to_init();
            self.look_for_another();
            // A worker that says nothing for so long is in trouble; the program need not be.
            self.is_known |= self.child.is_some() && self.begun.elapsed() > SILENCE;
            if self.program.is_none() && !self.is_known {
                continue;
            }
            while let Some(meaning) = self.next_signal() {
                self.signal(meaning);
            }
            if self.is_known && self.child.is_some() {
                self.reap();
            }
        }
    }

    /// The program's own end counts, but for one that was its worker's doing.
    fn ended_as(&self) -> Ended {
        let own = self.ended.unwrap_or(Ended::Exited(ended::FAILED));
        match (self.done, &self.kind) {
            (Some(ended::CHECKPOINTED), _) => Ended::Checkpointed,
            // It was ended as somebody has asked its worker to (`Request::Kill`).
            (Some(0), _) if own.exit_status() == KILLED => Ended::Exited(0),
            // Its own end counts, unless its worker had to end it or there is none.
            (Some(status), Child::Init(_) | Child::Restarted)
                if matches!(own.exit_status(), KILLED | ended::FAILED) =>
            {
                Ended::Exited(status)
            }
            _ => own,
        }
    }

    fn sleep(&self) -> io::Result<()> {
        let links = self.worker.iter().chain(self.init());
        let of_links = links.flat_map(Link::fds).chain(self.again.fds());
        let mut fds: Vec<PollFd<'_>> = of_links.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Signals wait until there is a program to have them, and a worker that is about to come.
        if (self.is_known || self.program.is_some()) && !self.again.is_asking() {
            fds.push(PollFd::new(self.signals.fd(), PollFlags::POLLIN));
        }
        let is_idle = self.is_known && self.again.is_idle();
        let patience = if is_idle { PollTimeout::NONE } else { PollTimeout::from(LOOK_AGAIN) };
        match poll(&mut fds, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next_signal(&mut self) -> Option<Meaning> {
        if self.again.is_asking() { None } else { self.signals.take() }
    }

    fn signal(&mut self, meaning: Meaning) {
        let (Meaning::Forward(signal) | Meaning::Everyones(signal)) = meaning else { return };
        match meaning {
            Meaning::Everyones(_) if self.keeps(signal) => self.tell(&Word::Signal(-signal), &[]),
            Meaning::Forward(_) if self.keeps(signal) => self.tell(&Word::Signal(signal), &[]),
            Meaning::Forward(_) => {
                let sent =
                    self.program.as_ref().map(|(process, _)| pidfd::send_signal(process.as_fd(), signal));
                // What it has left behind is meant then.
                if !matches!(sent, Some(Ok(()))) && !self.is_over {
                    self.tell(&Word::Signal(signal), &[]);
                }
            }
            _ => {}
        }
    }

    /// One that asks for a checkpoint is never the program's; SIGTERM, without a worker, is.
    fn keeps(&self, signal: i32) -> bool {
        self.kept & options::bit(signal) != 0 && (self.worker.is_some() || signal != libc::SIGTERM)
    }

    fn listen(&mut self) {
        while let Some(worker) = &self.worker {
            let Heard { word, descriptors } = match worker.hear_what_waits() {
                Ok(None) => return,
                Ok(Some(heard)) => heard,
                Err(error) => return self.alone(NoDoor::of(error)),
            };
            match word {
                Word::Program(Run { kept }) => {
                    self.kept = kept;
                    let process = descriptors.into_iter().next();
                    let known =
                        process.and_then(|fd| pidfd::names(fd.as_fd()).ok().flatten().map(|pid| (fd, pid)));
                    self.program = known.or(self.program.take());
                    if matches!(self.kind, Child::Restarted) {
                        self.child = self.program.as_ref().map(|program| program.1);
                        self.begun = Instant::now();
                    }
                }
                Word::Fork(fork) if self.child.is_none() => {
                    let born = birth::fork(fork, &descriptors, false);
                    self.tell(&Word::made(born), &[]);
                }
                Word::Terminal(flags) if self.child.is_none() => {
                    // That the worker is gone is seen by the next look.
                    let _ = worker.say_opened(&Word::Made(0), object::terminal::opened(flags));
                }
                Word::Foreground(group) if self.child.is_none() => {
                    let given = object::terminal::give(Pid::from_raw(group));
                    self.tell(&Word::made(given.map(|()| 0)), &[]);
                }
                Word::Running(_) => {
                    (self.is_known, self.is_at_work) = (true, true);
                    (self.running)();
                }
                Word::Programs(_) => super::tell_programs(worker, self.again.door()),
                Word::Heir(heir) => self.heir = Some(heir),
                // It has said why it cannot have what another one had.
                Word::Done(_) if self.heir.is_some() && !self.is_at_work => {
                    self.worker = None;
                    return self.failed(&Lost::Ended);
                }
                Word::Admit(process) => {
                    if let Some(to) = descriptors.into_iter().next() {
                        admit::answer(Pid::from_raw(process), to);
                    }
                }
                Word::Done(status) => {
                    self.done = Some(status as u8);
                    self.is_known = true;
                }
                _ => {}
            }
        }
    }

    /// Not before the program is known, as this process stops with it.
    fn init(&self) -> Option<&Link> {
        match &self.kind {
            Child::Init(link) if self.is_known && !self.is_over => Some(link),
            _ => None,
        }
    }

    /// What it tells is that the program has stopped.
    fn listen_to_init(&mut self) {
        while let Some(Ok(Some(heard))) = self.init().map(Link::hear_what_waits) {
            if let (Word::Stopped(_), Some((_, program))) = (heard.word, &self.program) {
                let program = *program;
                self.signals.stop_with(program);
            }
        }
    }

    /// The worker is gone.
    fn alone(&mut self, why: NoDoor) {
        self.worker = None;
        if self.done.is_some() {
            self.is_known = true;
            return;
        }
        if self.heir.is_some() && !self.is_at_work {
            return match why {
                NoDoor::Refused(_) => self.failed(&Lost::Refused(why)),
                _ => self.failed(&Lost::Killed),
            };
        }
        self.is_known = true;
        if self.heir.is_none() || self.ended.is_some() || self.is_over || !self.again.is_wanted() {
            return self.say_none(&Lost::Killed);
        }
        let why = self.cause();
        terminal::say(&format!(
            "the daemon's worker was killed{why}: another one takes its place, and the next checkpoint is full"
        ));
    }

    /// The one in its place was not to be had: it is tried again, or said that there is none.
    fn failed(&mut self, lost: &Lost) {
        self.is_known = true;
        if !self.again.is_wanted_later() {
            self.say_none(lost);
        }
    }

    fn say_none(&self, lost: &Lost) {
        let again = match self.program {
            Some((_, program)) if !self.is_over => format!("; for more: ckptbpf attach {program}"),
            _ => String::new(),
        };
        let what = match lost {
            Lost::Killed => format!("the daemon's worker was killed{}", self.cause()),
            Lost::Ended => "no other worker can go on with it".to_owned(),
            Lost::Refused(why) => format!("the daemon gives no other worker ({why})"),
        };
        terminal::say(&format!("{what}: there are no more checkpoints{again}"));
    }

    fn cause(&self) -> &'static str {
        let lacked = self.again.has_lacked_memory();
        if lacked { " for lack of memory (--worker-memory of the daemon's)" } else { "" }
    }

    /// Whether another worker is due, or there.
    fn look_for_another(&mut self) {
        let Some(heir) = &self.heir else { return };
        // Without the program's first process nobody can begin anew.
        if self.ended.is_some() {
            if self.again.give_up() && !self.is_over {
                self.say_none(&Lost::Ended);
            }
            return;
        }
        match self.again.step(heir) {
            Step::Nothing => {}
            Step::Asked => {
                (self.is_known, self.is_at_work) = (false, false);
                self.begun = Instant::now();
            }
            Step::Ready(worker) => match self.take_on(&worker) {
                Ok(()) => self.worker = Some(worker),
                Err(error) => self.failed(&Lost::Refused(NoDoor::Silent(error))),
            },
            Step::Failed(why) => self.failed(&Lost::Refused(why)),
        }
    }

    /// Tells another worker whose the program is.
    fn take_on(&self, worker: &Link) -> io::Result<()> {
        match (&self.kind, self.child, &self.program) {
            (Child::Program | Child::Restarted, ..) => worker.say(&self.started(), &[]),
            (Child::Init(link), Some(init), Some((program, _))) => {
                let (init, keeper) = (pidfd::open(init)?, init::link_anew(link)?);
                worker.say(&Word::Kept(true), &[init.as_fd(), keeper.as_fd(), program.as_fd()])
            }
            // There is no heir before there is a program.
            (Child::Init(_), ..) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn reap(&mut self) {
        loop {
            match wait::next_change() {
                Ok(Some((pid, Change::Ended(ended)))) if Some(pid) == self.child => {
                    self.ended = Some(ended);
                    self.tell_of_child(&Word::Ended(ended.to_wait()));
                }
                Ok(Some((pid, Change::Stopped))) if Some(pid) == self.child => self.signals.stop_with(pid),
                // What we had asked to stop, and had not waited for.
                Ok(Some((tid, Change::TraceStop(stop)))) => freeze::let_go_late(tid, stop),
                Ok(Some(_)) => {}
                Ok(None) if self.ended.is_none() || !tree::only_strangers_left() => return,
                Ok(None) | Err(_) => break,
            }
        }
        if !self.is_over {
            self.is_over = true;
            self.tell_of_child(&Word::Over(true));
        }
    }

    fn started(&self) -> Word {
        let strangers = tree::strangers().iter().map(|pid| pid.as_raw()).collect();
        let (keeper, root) = (Pid::this().as_raw(), self.child.map_or(0, Pid::as_raw));
        Word::Started(Started { keeper, strangers, root })
    }

    fn tell_of_child(&self, word: &Word) {
        if !matches!(self.kind, Child::Init(_)) {
            self.tell(word, &[]);
        }
    }

    fn tell(&self, word: &Word, with: &[BorrowedFd<'_>]) {
        // That it is gone is seen by whoever listens.
        if let Some(worker) = &self.worker {
            let _ = worker.say(word, with);
        }
    }
}

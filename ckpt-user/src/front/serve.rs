//! From the program's start to its end.
//!
//! ```text
//!          ┌── SIGCHLD: reap ───── Ended, Over ──▶ worker
//!   poll ──┼── signal: to the program │ Signal ──▶ worker
//!     ▲    └── worker: Program │ Running │ Stopped │ Done ──▶ exit status
//! ```
//! After a restart the child is init of the program's namespace, which ends as the program has ended ([`super::init`]), and tells
//! the worker itself.

use super::door::Door;
use crate::daemon::link::{Heard, Link, Run, Started, Word};
use crate::freeze::tree;
use crate::job::ended::{self, Ended};
use crate::job::options;
use crate::job::signals::{Meaning, Signals};
use crate::job::terminal;
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
    /// Init of its namespace.
    Init,
}

/// A program, or its init, that is our child.
pub struct Front<'a> {
    signals: Signals,
    child: Pid,
    kind: Child,
    /// Signals that are the worker's ([`options::bit`]).
    kept: u64,
    /// The program's first process; none before it runs.
    program: Option<(OwnedFd, Pid)>,
    ended: Option<Ended>,
    /// Where the worker is from.
    door: &'a Door,
    /// None once it is gone.
    worker: Option<Link>,
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
        child: Pid,
        kind: Child,
        signals: Signals,
        (door, worker): (&'a Door, Link),
        running: &'a mut dyn FnMut(),
    ) -> io::Result<Self> {
        // One that has ended already is there until it is reaped.
        let process = pidfd::open(child)?;
        Ok(Self {
            signals,
            child,
            program: matches!(kind, Child::Program).then_some((process, child)),
            kind,
            kept: 0,
            ended: None,
            door,
            worker: Some(worker),
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
        self.tell_started();
        loop {
            if self.is_over && (self.worker.is_none() || self.done.is_some()) {
                return Ok(self.ended_as());
            }
            self.sleep()?;
            self.listen();
            // A worker that says nothing for so long is in trouble; the program need not be.
            self.is_known |= self.begun.elapsed() > SILENCE;
            if self.program.is_none() && !self.is_known {
                continue;
            }
            while let Some(meaning) = self.signals.take() {
                self.signal(meaning);
            }
            if self.is_known {
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
            (Some(status), Child::Init) if matches!(own.exit_status(), KILLED | ended::FAILED) => {
                Ended::Exited(status)
            }
            _ => own,
        }
    }

    fn sleep(&self) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> =
            self.worker.iter().flat_map(Link::fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Signals wait until there is a program to have them.
        if self.is_known || self.program.is_some() {
            fds.push(PollFd::new(self.signals.fd(), PollFlags::POLLIN));
        }
        let patience = if self.is_known { PollTimeout::NONE } else { PollTimeout::from(LOOK_AGAIN) };
        match poll(&mut fds, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
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
                Err(_) => return self.alone(),
            };
            match word {
                Word::Program(Run { kept }) => {
                    self.kept = kept;
                    let process = descriptors.into_iter().next();
                    let known =
                        process.and_then(|fd| pidfd::names(fd.as_fd()).ok().flatten().map(|pid| (fd, pid)));
                    self.program = known.or(self.program.take());
                }
                Word::Running(_) => {
                    self.is_known = true;
                    (self.running)();
                }
                Word::Programs(_) => {
                    let programs = self.door.programs().ok();
                    let with: Vec<BorrowedFd<'_>> = programs.iter().map(AsFd::as_fd).collect();
                    self.tell(&Word::Programs(programs.is_some()), &with);
                }
                Word::Stopped(_) => {
                    if let Some((_, program)) = self.program {
                        self.signals.stop_with(program);
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

    /// The worker is gone.
    fn alone(&mut self) {
        self.worker = None;
        self.is_known = true;
        if self.done.is_some() {
            return;
        }
        let again = match self.program {
            Some((_, program)) if !self.is_over => format!("; for more: ckptbpf attach {program}"),
            _ => String::new(),
        };
        let lacked = self.door.has_lacked_memory();
        let why = if lacked { " for lack of memory (--worker-memory of the daemon's)" } else { "" };
        terminal::say(&format!("the daemon's worker was killed{why}: there are no more checkpoints{again}"));
    }

    fn reap(&mut self) {
        loop {
            match wait::next_change() {
                Ok(Some((pid, Change::Ended(ended)))) if pid == self.child => {
                    self.ended = Some(ended);
                    self.tell_of_child(&Word::Ended(ended.to_wait()));
                }
                Ok(Some((pid, Change::Stopped))) if pid == self.child => self.signals.stop_with(self.child),
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

    fn tell_started(&self) {
        let strangers = tree::strangers().iter().map(|pid| pid.as_raw()).collect();
        let (keeper, root) = (Pid::this().as_raw(), self.child.as_raw());
        self.tell_of_child(&Word::Started(Started { keeper, strangers, root }));
    }

    fn tell_of_child(&self, word: &Word) {
        if matches!(self.kind, Child::Program) {
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

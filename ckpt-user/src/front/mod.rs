//! ckptbpf as the parent of a program whose checkpoints are a worker's: small, as the job's limits count it.
//!
//! ```text
//!          ┌── SIGCHLD: reap ───── Ended, Over ──▶ worker
//!   poll ──┼── signal: to the program │ Signal ──▶ worker
//!     ▲    └── worker: Run │ Running │ Done ──▶ exit status
//! ```
//! It does what takes the program's parent, and nothing else. Should its worker be gone, the program is not the worse for it.

pub mod door;

use crate::daemon::asked::Asked;
use crate::daemon::link::{Go, Heard, Link, Run, Secret, Started, Word};
use crate::freeze::tree;
use crate::job::ended::{self, CannotRun, Ended};
use crate::job::options::LaunchOptions;
use crate::job::signals::{Meaning, Signals};
use crate::job::terminal;
use crate::machine::TUNABLES;
use crate::sys::wait::{self, Change};
use crate::sys::{challenge, clone, pidfd, spawn};
use anyhow::{Context, bail};
use door::{Door, NoDoor};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Has a worker do what this process was asked for. `program` is what it may ask to be run.
///
/// # Errors
/// [`NoDoor`] where the daemon gives no worker: nothing has been done then; or the program cannot be run.
pub fn go(door: &Door, program: Option<&LaunchOptions>, running: &mut dyn FnMut()) -> anyhow::Result<Ended> {
    let worker = door.worker()?;
    let run = match begin(&worker)? {
        Word::Run(run) => run,
        Word::Done(status) => return Ok(Ended::Exited(status as u8)),
        _ => bail!("the daemon's worker says what is not to be understood"),
    };
    let signals = Signals::listen_with_witness(None).context("cannot listen for signals")?;
    tree::note_strangers();
    clone::become_subreaper().context("cannot become the reaper of the program's orphans")?;
    let program = program.context("the daemon's worker asks for a program that there is not")?;
    let root = start(program, &signals).inspect_err(|_| drop(worker.say(&Word::Over(true), &[])))?;
    let mut front = Front {
        signals,
        root,
        ended: None,
        worker: Some(worker),
        run,
        is_known: false,
        is_over: false,
        done: None,
        running,
    };
    front.tell_started();
    front.serve().context("cannot wait for the program")
}

/// Shows who this is, and hands on what is wanted; what the worker says to that.
fn begin(worker: &Link) -> Result<Word, NoDoor> {
    let hear = || match worker.hear() {
        Ok(Some(heard)) => Ok(heard.word),
        Ok(None) => Err(NoDoor::Silent(io::Error::other("its worker was killed"))),
        Err(error) => Err(NoDoor::of(error)),
    };
    if let Word::Challenge(secret) = hear()? {
        // Whoever does not listen has said why.
        let _ = worker.say(&Word::Answer(read(secret)), &[]).and_then(|()| hand_on(worker));
    }
    hear()
}

/// What this process was asked for, and where it is.
fn hand_on(worker: &Link) -> io::Result<()> {
    let asked = Asked::here().written()?;
    let here = OwnedFd::from(std::fs::File::open(".")?);
    let streams: Vec<Option<OwnedFd>> = (0..3).map(|stream| pidfd::duplicate_standard(stream).ok()).collect();
    let bits = streams.iter().enumerate().filter(|one| one.1.is_some()).map(|one| 1 << one.0).sum();
    let streams = streams.iter().flatten().map(AsFd::as_fd);
    let with: Vec<BorrowedFd<'_>> = [asked.as_fd(), here.as_fd()].into_iter().chain(streams).collect();
    worker.say(&Word::Go(Go { streams: bits }), &with)
}

/// The secret; nothing where it may not be read, which is an answer, too.
fn read(secret: Secret) -> Vec<u8> {
    let mut answer = [0; challenge::LENGTH];
    let remote = [RemoteIoVec { base: secret.address as usize, len: answer.len() }];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let got = process_vm_readv(Pid::from_raw(secret.pid), &mut parts, &remote);
    if got == Ok(answer.len()) { answer.to_vec() } else { Vec::new() }
}

fn start(options: &LaunchOptions, signals: &Signals) -> anyhow::Result<Pid> {
    let name = options.program.first().context("no program was given")?;
    let tunables = std::env::var_os(TUNABLES);
    let baseline = options.cpu_baseline.map(|baseline| baseline.environment(tunables.as_deref()));
    spawn::spawn(&options.program, &baseline.unwrap_or_default(), signals.original, None)
        .map_err(|error| CannotRun::from_exec(&name.to_string_lossy(), false, error).into())
}

struct Front<'a> {
    signals: Signals,
    root: Pid,
    ended: Option<Ended>,
    /// None once it is gone.
    worker: Option<Link>,
    run: Run,
    /// The worker has seen the program: what ends before that stays there to be seen.
    is_known: bool,
    /// Nothing is left of the program.
    is_over: bool,
    /// The worker's last word.
    done: Option<u8>,
    running: &'a mut dyn FnMut(),
}

impl Front<'_> {
    fn serve(&mut self) -> io::Result<Ended> {
        loop {
            if self.is_over && (self.worker.is_none() || self.done.is_some()) {
                return Ok(self
                    .done
                    .map(Ended::Exited)
                    .or(self.ended)
                    .unwrap_or(Ended::Exited(ended::FAILED)));
            }
            self.sleep()?;
            while let Some(meaning) = self.signals.take() {
                self.signal(meaning);
            }
            self.listen();
            if self.is_known {
                self.reap();
            }
        }
    }

    fn sleep(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        fds.extend(self.worker.iter().map(|worker| PollFd::new(worker.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn signal(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Forward(signal) | Meaning::Everyones(signal)
                if Some(signal) == self.run.checkpoint_signal =>
            {
                self.tell(&Word::Signal(signal), &[]);
            }
            // Its id may be somebody else's by now: what it has left behind is meant.
            Meaning::Forward(signal) if self.ended.is_some() => {
                tree::members(self.root).into_iter().for_each(|(pid, _)| wait::send(pid, signal));
            }
            Meaning::Forward(signal) => wait::send(self.root, signal),
            _ => {}
        }
    }

    fn listen(&mut self) {
        while let Some(worker) = &self.worker {
            match worker.hear_what_waits() {
                Ok(None) => return,
                Ok(Some(Heard { word: Word::Running(_), .. })) => {
                    self.is_known = true;
                    (self.running)();
                }
                Ok(Some(Heard { word: Word::Done(status), .. })) => self.done = Some(status as u8),
                Ok(Some(_)) => {}
                Err(_) => self.alone(),
            }
        }
    }

    /// The worker is gone.
    fn alone(&mut self) {
        self.worker = None;
        self.is_known = true;
        if self.done.is_none() {
            let again = if self.is_over {
                String::new()
            } else {
                format!("; for more: ckptbpf attach {}", self.root)
            };
            terminal::say(&format!("the daemon's worker was killed: there are no more checkpoints{again}"));
        }
    }

    fn reap(&mut self) {
        loop {
            match wait::next_change() {
                Ok(Some((pid, Change::Ended(ended)))) if pid == self.root => {
                    self.ended = Some(ended);
                    self.tell(&Word::Ended(ended.to_wait()), &[]);
                }
                Ok(Some((pid, Change::Stopped))) if pid == self.root => self.signals.stop_with(self.root),
                Ok(Some(_)) => {}
                Ok(None) if self.ended.is_none() || !tree::only_strangers_left() => return,
                Ok(None) | Err(_) => break,
            }
        }
        if !self.is_over {
            self.is_over = true;
            self.tell(&Word::Over(true), &[]);
        }
    }

    fn tell_started(&mut self) {
        let strangers = tree::strangers().iter().map(|pid| pid.as_raw()).collect();
        let started = Started { keeper: Pid::this().as_raw(), strangers };
        // One that has ended already is there until it is reaped.
        match pidfd::open(self.root) {
            Ok(process) => self.tell(&Word::Started(started), &[process.as_fd()]),
            Err(_) => self.alone(),
        }
    }

    fn tell(&self, word: &Word, with: &[BorrowedFd<'_>]) {
        // That it is gone is seen by whoever listens.
        if let Some(worker) = &self.worker {
            let _ = worker.say(word, with);
        }
    }
}

//! Another worker in the place of one that was killed.
//!
//! ```text
//! killed ─▶ due ── the daemon is asked ─▶ asked ── Challenge: Answer, Go ─▶ the front's worker ── Running ─▶ as ever
//!            ▲               │ there is none, or it ends before it has said Running         │
//!            └──── pause ────┴──────────────────────────────────────────────────────────────┘
//! ```
//! Three times in all. Nothing here waits for the worker: the program's parent has other things to do.

use super::answer;
use super::door::{Door, NoDoor};
use crate::daemon::link::{Heard, Heir, Link, Word};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How many others one program may have.
const TIMES: u8 = 3;

/// After one that was not to be had: a daemon that was killed, too, may be there again.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a daemon may take to start one.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be done for another worker.
pub struct Again {
    door: Door,
    left: u8,
    /// When the daemon is to be asked.
    due: Option<Instant>,
    /// One that has not shown yet that it is there, and since when.
    asked: Option<(Link, Instant)>,
}

/// What has come of a look.
pub enum Step {
    Nothing,
    /// One has been asked for: who ends is to stay there to be seen.
    Asked,
    /// It waits for the program.
    Ready(Link),
    Failed(NoDoor),
}

impl Again {
    pub fn of(door: Door) -> Self {
        Self { door, left: TIMES, due: None, asked: None }
    }

    /// The worker was killed; whether there is to be another one, at once.
    pub fn is_wanted(&mut self) -> bool {
        self.within(Duration::ZERO)
    }

    /// The other one was not to be had; whether it is to be tried again.
    pub fn is_wanted_later(&mut self) -> bool {
        self.within(PAUSE)
    }

    fn within(&mut self, pause: Duration) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.due = Some(Instant::now() + pause);
        true
    }

    /// None is to be asked for any more; whether one was.
    pub fn give_up(&mut self) -> bool {
        self.due.take().is_some()
    }

    /// The way to the daemon that was asked last.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.due.is_none() && self.asked.is_none()
    }

    /// Whether one has been asked for that is not there yet.
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// What becomes readable when there is something to do.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.asked.iter().flat_map(|(link, _)| link.fds())
    }

    /// Whether workers of this user have been killed for lack of memory since the last one was asked for.
    pub fn has_lacked_memory(&self) -> bool {
        self.door.has_lacked_memory()
    }

    /// Does what is to be done now.
    pub fn step(&mut self, heir: &Heir) -> Step {
        if self.due.take_if(|due| *due <= Instant::now()).is_some() {
            return match self.ask() {
                Ok(link) => {
                    self.asked = Some((link, Instant::now()));
                    Step::Asked
                }
                Err(why) => Step::Failed(why),
            };
        }
        let Some((link, since)) = self.asked.take() else { return Step::Nothing };
        let done = match link.hear_what_waits() {
            Ok(None) if since.elapsed() < PATIENCE => {
                self.asked = Some((link, since));
                return Step::Nothing;
            }
            Ok(None) => Err(NoDoor::Silent(io::ErrorKind::TimedOut.into())),
            Ok(Some(Heard { word: Word::Challenge(secret), .. })) => {
                answer(&link, secret, &self.door, Some(heir))
            }
            Ok(Some(_)) => Err(NoDoor::Silent(io::ErrorKind::InvalidData.into())),
            Err(error) => Err(NoDoor::of(error)),
        };
        done.map_or_else(Step::Failed, |()| Step::Ready(link))
    }

    /// By whoever listens there now.
    fn ask(&mut self) -> Result<Link, NoDoor> {
        self.door = self.door.found_again()?;
        self.door.worker()
    }
}

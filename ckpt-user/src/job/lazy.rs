//! The end of a lazy restart, as the supervisor sees it.
//!
//! ```text
//!  arriving ──`done`──▶ arrived (event lazy-done) ──short freeze between checkpoints──▶ handed over
//!      │                          └── tree does not stand still: again later
//!      └──`done`, program killed──▶ over (event error)
//! ```

use super::events::{Event, EventLog};
use super::in_freeze::Tracked;
use crate::freeze;
use crate::page::Pager;
use crate::refusal::Refusal;
use crate::task::iterators::Kernel;
use nix::unistd::Pid;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between attempts to hand over.
const PAUSE: Duration = Duration::from_millis(200);

/// What is left to do about a lazy restart.
#[derive(Debug)]
pub struct Lazy {
    /// Until it is over: it holds the locks of the generations that it reads.
    pager: Option<Arc<Pager>>,
    events: Option<EventLog>,
    began: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Arriving,
    /// Hand over, not before then.
    Arrived(Instant),
    Over,
}

impl Lazy {
    pub fn new(pager: Arc<Pager>, events: Option<EventLog>) -> Self {
        Self { pager: Some(pager), events, began: Instant::now(), state: State::Arriving }
    }

    /// Readable when there is news.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pager.as_ref().filter(|_| self.state == State::Arriving).map(|pager| pager.done())
    }

    /// How long until something is to be done without news.
    pub fn wait(&self) -> Option<Duration> {
        match self.state {
            State::Arrived(next) => Some(next.saturating_duration_since(Instant::now())),
            State::Arriving | State::Over => None,
        }
    }

    /// Pages that have not arrived.
    pub fn missing(&self) -> u64 {
        self.pager.as_ref().map_or(0, |pager| pager.missing())
    }

    /// Whether nothing is left of it.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether a page could not be had: the program was killed for that.
    pub fn has_failed(&self) -> bool {
        self.pager.as_ref().is_some_and(|pager| pager.has_failed())
    }

    /// Looks for news.
    pub fn look(&mut self) {
        let Some(pager) = self.pager.as_ref().filter(|_| self.state == State::Arriving) else { return };
        let event = |name| Event::named(name, self.began.elapsed()).count("pages", pager.total);
        let news = if pager.is_full() {
            self.state = State::Arrived(Instant::now());
            event("lazy-done")
        } else if self.has_failed() {
            self.state = State::Over;
            event("error").text("why", "a page of a lazy restart could not be had")
        } else {
            return;
        };
        if let Some(Err(error)) = self.events.as_mut().map(|log| log.write(&news)) {
            log::warn!("{error}");
        }
    }

    /// On the tracer's thread, while no checkpoint is being made: hands over when it is time.
    pub fn hand_over(&mut self, root: Pid, tracked: &Mutex<Tracked>, kernel: &Kernel) {
        let State::Arrived(next) = self.state else { return };
        if next > Instant::now() {
            return;
        }
        self.state = match try_hand_over(root, tracked, kernel) {
            Ok(()) | Err(Refusal::Ended) => {
                self.pager = None;
                State::Over
            }
            Err(error) => {
                log::debug!("the pager goes on for now: {error}");
                State::Arrived(Instant::now() + PAUSE)
            }
        };
    }
}

fn try_hand_over(root: Pid, tracked: &Mutex<Tracked>, kernel: &Kernel) -> Result<(), Refusal> {
    let tree = freeze::freeze(root, kernel)?;
    let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
    let done = tracked.hand_over(&tree);
    tree.thaw();
    done
}

//! Who the program's parent is, as its supervisor sees it: this very process, or a front that tells what becomes of it.

use super::ended::{Ended, FAILED};
use super::signals::{Meaning, Signals};
use crate::daemon::link::{Heard, Link, Word};
use nix::unistd::Pid;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// The program's parent.
#[derive(Debug)]
pub enum Parent {
    /// This process, and what it is sent.
    Us(Signals),
    /// The other end of this link.
    Front(Arc<Link>),
}

/// What it has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    Signal(Meaning),
    /// The program's first process has ended.
    Ended(Ended),
    /// Nothing is left of the program.
    Over,
}

impl Parent {
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Us(signals) => signals.fd(),
            Self::Front(link) => link.as_fd(),
        }
    }

    /// The next that waits. A worker whose front was killed ends at once, as it would have been killed with it: the program goes
    /// on, and what it had half written is nobody's.
    pub fn take(&mut self) -> Option<News> {
        match self {
            Self::Us(signals) => signals.take().map(News::Signal),
            Self::Front(link) => loop {
                match link.hear_what_waits() {
                    Ok(None) => return None,
                    Ok(Some(Heard { word, .. })) => match word {
                        Word::Signal(signal) => return Some(News::Signal(Meaning::Forward(signal))),
                        Word::Ended(status) => return Some(News::Ended(Ended::from_wait(status))),
                        Word::Over(_) => return Some(News::Over),
                        _ => {}
                    },
                    Err(_) => std::process::exit(FAILED.into()),
                }
            },
        }
    }

    /// Stops as the program has stopped ([`Signals::stop_with`]). A front does so by itself.
    pub fn stop_with(&mut self, program: Pid) {
        if let Self::Us(signals) = self {
            signals.stop_with(program);
        }
    }

    pub fn is_front(&self) -> bool {
        matches!(self, Self::Front(_))
    }
}

//! Who the program's parent is, as its supervisor sees it: this very process, or others that tell what becomes of it.

use super::ended::Ended;
use super::signals::{Meaning, Signals};
use crate::daemon::link::{Heard, Heir, Link, Run, Word};
use crate::daemon::told;
use crate::front;
use crate::sys::pidfd;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// The program's parent.
#[derive(Debug)]
pub enum Parent {
    /// This process, and what it is sent.
    Us(Signals),
    /// The ckptbpf that was started; after a restart an init between it and the program.
    Front(Elsewhere),
}

/// Links to a parent that is another process.
#[derive(Debug)]
pub struct Elsewhere {
    front: Arc<Link>,
    keeper: Option<Arc<Link>>,
    /// Who is traced and killed has to be waited for by its tracer before its parent can: SIGCHLD says so. What else is sent to
    /// a worker is meant for the program, and its front has it, too.
    signals: Signals,
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
    /// Of a worker's program. Before any thread is started.
    ///
    /// # Errors
    /// Signals cannot be listened for.
    pub fn elsewhere(front: &Arc<Link>, keeper: Option<Arc<Link>>) -> io::Result<Self> {
        Ok(Self::Front(Elsewhere { front: front.clone(), keeper, signals: Signals::listen()? }))
    }

    /// Where news come from.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (signals, links) = match self {
            Self::Us(signals) => (signals, None),
            Self::Front(elsewhere) => (&elsewhere.signals, Some(elsewhere)),
        };
        let links = links.into_iter().flat_map(|of| of.keeper.iter().chain([&of.front]));
        std::iter::once(signals.fd()).chain(links.flat_map(|link| link.fds()))
    }

    /// The next that waits. A worker whose front was killed ends at once, as it would have been killed with it: the program goes
    /// on, and what it had half written is nobody's.
    pub fn take(&mut self) -> Option<News> {
        match self {
            Self::Us(signals) => signals.take().map(News::Signal),
            Self::Front(Elsewhere { front, keeper, signals }) => {
                while signals.take().is_some() {}
                // What has become of the program first: signals go by that.
                keeper.as_deref().and_then(next).or_else(|| next(front))
            }
        }
    }

    /// Tells it of the program's first process, which is about to run, and of signals that are not for that.
    ///
    /// # Errors
    /// It is gone.
    pub fn is_to_have(&self, root: Pid, kept: u64) -> io::Result<()> {
        if let Self::Front(Elsewhere { front, keeper, .. }) = self {
            if let Some(keeper) = keeper {
                keeper.say(&Word::Root(root.as_raw()), &[])?;
            }
            let process = pidfd::open(root)?;
            front.say(&Word::Program(Run { kept }), &[process.as_fd()])?;
        }
        Ok(())
    }

    /// The program is supervised: it may be waited for.
    pub fn is_supervised(&self) {
        if let Self::Front(Elsewhere { keeper: Some(keeper), .. }) = self {
            // One that is gone waits for nobody.
            let _ = keeper.say(&Word::Running(true), &[]);
        }
    }

    /// Tells what the one in this worker's place would have to know: from here on the program needs nothing of this process.
    pub fn may_be_replaced(&self, heir: Heir) {
        if let Self::Front(Elsewhere { front, .. }) = self {
            // One that is gone asks for nobody.
            let _ = front.say(&Word::Heir(heir), &[]);
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

/// The next word for a supervisor.
fn next(from: &Link) -> Option<News> {
    loop {
        match from.hear_what_waits() {
            Ok(None) => return None,
            Ok(Some(Heard { word, descriptors })) => match word {
                Word::Signal(signal) if signal < 0 => {
                    return Some(News::Signal(Meaning::Everyones(signal.saturating_neg())));
                }
                Word::Signal(signal) => return Some(News::Signal(Meaning::Forward(signal))),
                Word::Ended(status) => return Some(News::Ended(Ended::from_wait(status))),
                Word::Over(_) => return Some(News::Over),
                Word::Programs(_) => told::note_another(descriptors.into_iter().next()),
                _ => {}
            },
            Err(_) => front::lost(),
        }
    }
}

//! Whose children the program's processes are born as: this process's own, or those of the program's keeper, whose worker this is.

use super::clocks;
use super::objects::Objects;
use super::{RebuildError, Rebuilding};
use crate::daemon::link::{Fork, Heard, Link, Offsets, Word};
use crate::record::Clocks;
use crate::sys::clone;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Where skeletons come from.
#[derive(Debug, Clone)]
pub enum Nursery {
    Ourselves,
    Keeper(Arc<Link>),
}

impl Nursery {
    /// Whether it is of this process's control group, which pays for what the program is made of.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ourselves)
    }

    /// The next are born with these clocks; what to go back to with [`clocks::leave`].
    ///
    /// # Errors
    /// As [`clocks::enter`].
    pub fn enter_clocks(&self, clocks: Option<&Clocks>) -> io::Result<Option<File>> {
        let Some(clocks) = clocks else { return Ok(None) };
        let (monotonic, boottime) = clocks::offsets(clocks)?;
        match self {
            Self::Ourselves => clocks::enter((monotonic, boottime)).map(Some),
            Self::Keeper(link) => {
                ask(link, &Word::Clocks(Offsets { monotonic, boottime }), &[])?;
                Ok(None)
            }
        }
    }

    /// A process that waits to be taken over ([`clone::fork_waiting`]).
    ///
    /// # Errors
    /// EEXIST when the id is taken.
    pub fn fork_waiting(&self, pid: Pid, objects: &Objects) -> io::Result<Pid> {
        match self {
            Self::Ourselves => clone::fork_waiting(pid, None),
            Self::Keeper(link) => {
                let fork = Word::Fork(Fork { pid: pid.as_raw(), door: objects.door_number() });
                ask(link, &fork, &[objects.door.there()]).map(Pid::from_raw)
            }
        }
    }

    /// Gives a process that was just born and taken over what it would have inherited of this one.
    ///
    /// # Errors
    /// Named: it has no room for so many descriptors.
    pub fn equip(&self, remote: &mut Remote, objects: &Objects) -> Result<(), RebuildError> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Keeper(_) => {
                let pid = remote.pid().as_raw();
                objects.hand_over(remote).rebuilding(pid, "what it has open")
            }
        }
    }
}

fn ask(link: &Link, word: &Word, with: &[BorrowedFd<'_>]) -> io::Result<i32> {
    link.say(word, with)?;
    match link.hear()? {
        Some(Heard { word: Word::Made(made), .. }) if made >= 0 => Ok(made),
        Some(Heard { word: Word::Made(error), .. }) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("the program's parent was killed")),
    }
}

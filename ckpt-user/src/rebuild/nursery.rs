//! Whose children the program's processes are born as: this process's own, or those of the program's keeper, whose worker this is.

use super::clocks;
use super::objects::Objects;
use super::{RebuildError, Rebuilding};
use crate::daemon::link::{Fork, Heard, Link, Offsets, Word};
use crate::object::terminal;
use crate::record::Clocks;
use crate::sys::clone;
use crate::sys::remote::Remote;
use nix::unistd::{Pid, tcsetpgrp};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
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

    /// [`terminal::opened`], in the program's session.
    ///
    /// # Errors
    /// As there.
    pub fn open_terminal(&self, flags: i32) -> io::Result<File> {
        match self {
            Self::Ourselves => terminal::opened(flags),
            Self::Keeper(link) => {
                let opened = answer(link, &Word::Terminal(flags), &[])?.1.into_iter().next();
                opened.map(File::from).ok_or_else(|| io::ErrorKind::InvalidData.into())
            }
        }
    }

    /// Makes a process group of the program's that of the terminal in the foreground. By a process that does not take SIGTTOU, which
    /// stops whoever does this from the background (tcsetpgrp(3)).
    ///
    /// # Errors
    /// It is none of the session's.
    pub fn give_terminal(&self, group: Pid) -> io::Result<()> {
        match self {
            Self::Ourselves => Ok(tcsetpgrp(terminal::opened(libc::O_RDWR)?, group)?),
            Self::Keeper(link) => ask(link, &Word::Foreground(group.as_raw()), &[]).map(drop),
        }
    }
}

fn ask(link: &Link, word: &Word, with: &[BorrowedFd<'_>]) -> io::Result<i32> {
    Ok(answer(link, word, with)?.0)
}

fn answer(link: &Link, word: &Word, with: &[BorrowedFd<'_>]) -> io::Result<(i32, Vec<OwnedFd>)> {
    link.say(word, with)?;
    match link.hear()? {
        Some(Heard { word: Word::Made(made), descriptors }) if made >= 0 => Ok((made, descriptors)),
        Some(Heard { word: Word::Made(error), .. }) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("the program's parent was killed")),
    }
}

//! Whose children the program's processes are born as: this process's own, or those of the program's keeper, whose worker this is;
//! and how they come by their ids.

use super::clocks;
use super::objects::Objects;
use super::{RebuildError, Rebuilding};
use crate::daemon::link::{Fork, Heard, Link, Offsets, Word};
use crate::daemon::numbering::Numbering;
use crate::object::terminal;
use crate::record::Clocks;
use crate::sys::clone;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Where skeletons come from.
#[derive(Debug, Clone)]
pub enum Nursery {
    Ourselves,
    /// Init of the program's namespaces.
    Keeper(Arc<Link>),
    /// The front, where no namespaces are to be had: nobody chooses ids or clocks there.
    Here(Arc<Here>),
}

/// The way to a front, and to the core that sees to its children's ids.
#[derive(Debug)]
pub struct Here {
    pub front: Arc<Link>,
    pub numbering: Numbering,
}

impl Nursery {
    /// The way to the parent of what is made, where that is another process.
    fn parent(&self) -> Option<&Link> {
        match self {
            Self::Ourselves => None,
            Self::Keeper(link) => Some(link),
            Self::Here(here) => Some(&here.front),
        }
    }

    /// Whether it is of this process's control group, which pays for what the program is made of.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ourselves)
    }

    /// Whether each process has to execute its program's file: to say that it had takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN
    /// (PR_SET_MM_MAP of prctl(2), `exe_fd`).
    pub fn has_to_execute(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Whether an id is had only by whoever is quick: what has it now may be gone the next time.
    pub fn has_to_be_quick(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Has `make` make a process or thread that is to have `id`. It is told which id to ask the kernel for; where that is none, what
    /// it makes may have another one.
    ///
    /// # Errors
    /// Those of `make`; the core is gone.
    pub fn with_id<T>(&self, id: i32, make: impl FnOnce(Option<i32>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Here(here) => here.numbering.next(id, || make(None)),
            Self::Ourselves | Self::Keeper(_) => make(Some(id)),
        }
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
            Self::Here(_) => Ok(None),
        }
    }

    /// A process that waits to be taken over ([`clone::fork_waiting`]).
    ///
    /// # Errors
    /// EEXIST when the id is taken, or somebody else was quicker.
    pub fn fork_waiting(&self, pid: i32, objects: &Objects) -> io::Result<Pid> {
        let Some(parent) = self.parent() else { return clone::fork_waiting(Some(Pid::from_raw(pid)), None) };
        let fork = Word::Fork(Fork { pid, door: objects.door_number() });
        let born = self.with_id(pid, |_| ask(parent, &fork, &[objects.door.there()]))?;
        Ok(Pid::from_raw(born))
    }

    /// Gives a process that was just born and taken over what it would have inherited of this one.
    ///
    /// # Errors
    /// Named: it has no room for so many descriptors.
    pub fn equip(&self, remote: &mut Remote, objects: &Objects) -> Result<(), RebuildError> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Keeper(_) | Self::Here(_) => {
                let pid = remote.pid().as_raw();
                objects.hand_over(remote, self.has_to_execute()).rebuilding(pid, "what it has open")
            }
        }
    }

    /// [`terminal::opened`], in the program's session.
    ///
    /// # Errors
    /// As there.
    pub fn open_terminal(&self, flags: i32) -> io::Result<File> {
        let Some(parent) = self.parent() else { return terminal::opened(flags) };
        let opened = answer(parent, &Word::Terminal(flags), &[])?.1.into_iter().next();
        opened.map(File::from).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// [`terminal::give`], in the program's session.
    ///
    /// # Errors
    /// As there.
    pub fn give_terminal(&self, group: Pid) -> io::Result<()> {
        match self.parent() {
            None => terminal::give(group),
            Some(parent) => ask(parent, &Word::Foreground(group.as_raw()), &[]).map(drop),
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

//! A worker's way to its core for process ids of the image's, where no namespace is to be had ([`super::ids`]).

use super::lender::{self, answer, succeeded};
use super::wire::{IDS, Message, NextId};
use crate::front::door;
use crate::sys::packet;
use nix::sys::socket::MsgFlags;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A core that gives ids.
#[derive(Debug)]
pub struct Numbering {
    core: OwnedFd,
}

impl Numbering {
    /// # Errors
    /// This is no worker, or its core is gone, or of another version.
    pub fn by_core() -> io::Result<Self> {
        let place = lender::place().ok_or_else(|| io::Error::other("no daemon has started this process"))?;
        let numbering = Self { core: door::knock(place, IDS).map_err(io::Error::other)? };
        numbering.is_done()?;
        Ok(numbering)
    }

    /// Has `make` make a process or thread, which gets `id` unless somebody else on this machine is quicker: it has to look.
    ///
    /// # Errors
    /// EINVAL of an id that is given to nobody; the core is gone; those of `make`.
    pub fn next<T>(&self, id: i32, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.say(id)?;
        self.is_done()?;
        let made = make();
        // That the core is gone is seen at the next one.
        let _ = self.say(0);
        made
    }

    fn say(&self, id: i32) -> io::Result<()> {
        let message = Message::NextId(NextId { id, reserved: 0 });
        packet::send(self.core.as_fd(), &message.to_bytes(), &[], MsgFlags::empty())
    }

    fn is_done(&self) -> io::Result<()> {
        match answer(&self.core)?.0 {
            Message::Done(outcome) => succeeded(outcome),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

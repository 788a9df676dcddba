//! A worker's way to its core, for what a lazy restart takes ([`super::faults`]): asked outside of the program's namespaces, where
//! root can be told from others, and used inside.

use super::link::Refused;
use super::wire::{FAULTS, Features, LIMIT, Message, Outcome, Refusal};
use crate::front::door;
use crate::sys::packet::{self, Packet};
use crate::sys::uffd::{self, Uffd};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, Shutdown, shutdown};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the core listens; noted by a worker.
static PLACE: OnceLock<PathBuf> = OnceLock::new();
static LENDER: OnceLock<Result<Lender, String>> = OnceLock::new();

/// A core that lends.
#[derive(Debug)]
pub struct Lender {
    core: OwnedFd,
    device: OwnedFd,
}

/// Notes where the core of this worker is.
pub fn note_place(path: PathBuf) {
    PLACE.get_or_init(|| path);
}

/// Where the core of this worker listens; none in a process that is no worker.
pub fn place() -> Option<&'static Path> {
    PLACE.get().map(PathBuf::as_path)
}

/// The core of this worker, and its answer when it was asked first; none in a process that is no worker.
///
/// # Errors
/// It does not lend, or is gone.
pub fn lender() -> io::Result<Option<&'static Lender>> {
    let Some(place) = PLACE.get() else { return Ok(None) };
    let lender = LENDER.get_or_init(|| Lender::asked(place).map_err(|error| error.to_string()));
    lender.as_ref().map(Some).map_err(|why| io::Error::other(why.clone()))
}

impl Lender {
    fn asked(place: &Path) -> io::Result<Self> {
        let core = door::knock(place, FAULTS).map_err(io::Error::other)?;
        let (answer, mut descriptors) = answer(&core)?;
        let Message::Device(outcome) = answer else { return Err(io::ErrorKind::InvalidData.into()) };
        succeeded(outcome)?;
        let device = descriptors.pop().ok_or(io::ErrorKind::InvalidData)?;
        let lender = Self { core, device };
        // What is lent is tried at once.
        lender.handshake(Uffd::of_device(&lender.device)?, uffd::EVENTS)?;
        Ok(lender)
    }

    /// All that is needed is made: the core need not keep a place for it.
    pub fn done(&self) {
        let _ = shutdown(self.core.as_raw_fd(), Shutdown::Both);
    }

    /// /dev/userfaultfd.
    pub fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// [`Uffd::handshake`] by the core.
    ///
    /// # Errors
    /// As there; the core may be gone, too.
    pub fn handshake(&self, fd: OwnedFd, features: u64) -> io::Result<Uffd> {
        let request = Message::Features(Features { features });
        packet::send(self.core.as_fd(), &request.to_bytes(), &[fd.as_fd()], MsgFlags::empty())?;
        match answer(&self.core)?.0 {
            Message::Done(outcome) => succeeded(outcome).map(|()| Uffd::adopt(fd)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// How long a core may take, in milliseconds: ids it gives to one client after the other.
const ANSWER: u16 = 60_000;

/// The next word of the core.
///
/// # Errors
/// It is gone, refuses, or says nothing for a minute.
pub(super) fn answer(core: &OwnedFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    wait(core, ANSWER)?;
    let gone = || io::Error::new(io::ErrorKind::ConnectionReset, "the daemon is gone");
    let packet = packet::receive(core.as_fd(), LIMIT, MsgFlags::empty())?.ok_or_else(gone)?;
    let Packet { bytes, descriptors, .. } = packet;
    match Message::parse(&bytes) {
        Ok(Message::Refused(refused)) => {
            Err(io::Error::other(Refused(Refusal::of(refused.reason).unwrap_or(Refusal::Failed))))
        }
        Ok(message) => Ok((message, descriptors)),
        Err(refusal) => Err(io::Error::other(Refused(refusal))),
    }
}

/// One that is stopped is not to hold up a restart for ever, which no signal ends.
fn wait(core: &OwnedFd, patience: u16) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(core.as_fd(), PollFlags::POLLIN)], patience) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon does not answer")),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// # Errors
/// What was not done.
pub(super) fn succeeded(outcome: Outcome) -> io::Result<()> {
    match outcome.error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.cast_signed())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn a_core_that_says_nothing_is_not_waited_for_without_end() {
        let (ours, its) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        assert_eq!(wait(&ours, 10).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let done = Message::Done(Outcome { error: 0, reserved: 0 });
        packet::send(its.as_fd(), &done.to_bytes(), &[], MsgFlags::empty()).unwrap();
        assert_eq!(answer(&ours).unwrap().0, done);
        drop(its);
        assert_eq!(answer(&ours).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

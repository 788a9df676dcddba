//! ckptbpf outside of its program's own pid namespace: the supervisor, inside, is nobody's job to a shell, so this one
//! passes signals on to it, stops and continues with it, and ends as it has ended.

use super::ended::Ended;
use super::signals::{Meaning, Signals};
use super::terminal;
use crate::sys::pidfd;
use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How long the namespace may take to be gone once its supervisor is.
const GONE: u16 = 2000;

/// What comes from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// There is no supervisor, for this error number.
    Failed(i32),
    /// The supervisor is there, under this id as seen from outside.
    Started(i32),
    /// It has stopped, gone on or ended (waitpid(2)).
    Status(i32),
}

impl News {
    /// Writes it whole; a stand-in that is gone hears nothing.
    pub fn tell(self, to: BorrowedFd<'_>) {
        let (kind, value) = match self {
            Self::Failed(value) => (0, value),
            Self::Started(value) => (1, value),
            Self::Status(value) => (2, value),
        };
        let bytes = (i64::from(kind) << 32 | i64::from(value.cast_unsigned())).to_le_bytes();
        let _ = write(to, &bytes);
    }

    /// The next; none when nobody is left to tell any.
    fn hear(from: BorrowedFd<'_>) -> Option<Self> {
        let mut bytes = [0; 8];
        // Eight bytes are written in one piece to a pipe, and so they come.
        let got = loop {
            match read(from, &mut bytes) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other,
            }
        };
        if got != Ok(bytes.len()) {
            return None;
        }
        let word = i64::from_le_bytes(bytes);
        match (word >> 32, word as i32) {
            (0, value) => Some(Self::Failed(value)),
            (1, value) => Some(Self::Started(value)),
            (2, value) => Some(Self::Status(value)),
            _ => None,
        }
    }
}

/// Signals wait from here on, until there is somebody to pass them on to.
pub struct Waiting(Signals);

/// The stand-in.
pub struct StandIn {
    signals: Signals,
    /// pid 1 of the namespace, or who has entered it; a child of ours.
    between: OwnedFd,
    news: OwnedFd,
    handle: Option<OwnedFd>,
    supervisor: Pid,
}

impl StandIn {
    /// Before the fork, so that no signal is lost.
    pub fn prepare() -> anyhow::Result<Waiting> {
        Ok(Waiting(Signals::listen_with_witness(None).context("cannot listen for signals")?))
    }

    /// Passes signals on, and waits for the end.
    ///
    /// # Errors
    /// Only when it cannot wait (poll).
    pub fn serve(mut self) -> anyhow::Result<Ended> {
        loop {
            let mut fds = [
                PollFd::new(self.signals.fd(), PollFlags::POLLIN),
                PollFd::new(self.news.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let news = fds[1].any().unwrap_or(false);
            while let Some(meaning) = self.signals.take() {
                self.pass_on(meaning);
            }
            if !news {
                continue;
            }
            match News::hear(self.news.as_fd()) {
                Some(News::Status(status)) if libc::WIFSTOPPED(status) => {
                    self.signals.stop_with(self.supervisor);
                }
                Some(News::Status(status)) if libc::WIFEXITED(status) => {
                    self.wait_for_the_rest();
                    return Ok(Ended::from_wait(status));
                }
                Some(News::Status(status)) if libc::WIFSIGNALED(status) => {
                    terminal::say(
                        "the supervisor in the program's pid namespace was killed; whether the program goes on: ckptbpf \
                         status",
                    );
                    return Ok(Ended::from_wait(status));
                }
                Some(_) => {}
                None => {
                    self.wait_for_the_rest();
                    terminal::say(
                        "init of the program's pid namespace was killed, and with it all that was in there",
                    );
                    return Ok(Ended::Signaled(libc::SIGKILL));
                }
            }
        }
    }

    fn pass_on(&self, meaning: Meaning) {
        let Meaning::Forward(signal) = meaning else { return };
        if let Some(supervisor) = &self.handle {
            // It may have ended.
            let _ = pidfd::send_signal(supervisor.as_fd(), signal);
        }
    }

    /// What is left in the namespace is gone in a moment, and is not to be seen after us.
    fn wait_for_the_rest(&self) {
        let mut fds = [PollFd::new(self.between.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, GONE) == Err(nix::errno::Errno::EINTR) {}
    }
}

impl Waiting {
    /// Once `between` has been forked: waits for what it has to tell.
    ///
    /// # Errors
    /// What has failed inside.
    pub fn begin(self, between: Pid, news: OwnedFd) -> io::Result<StandIn> {
        let gone = || io::Error::other("it was killed while it was made");
        let between = pidfd::open(between)?;
        let supervisor = match News::hear(news.as_fd()).ok_or_else(gone)? {
            News::Failed(number) => return Err(io::Error::from_raw_os_error(number)),
            News::Started(known) | News::Status(known) => Pid::from_raw(known),
        };
        // It may have ended already: then there is no need for one.
        let handle = pidfd::open(supervisor).ok();
        Ok(StandIn { signals: self.0, between, news, handle, supervisor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_arrive_as_they_were_told_and_end_with_the_teller() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let all =
            [News::Failed(libc::EPERM), News::Started(i32::MAX), News::Status(0x137f), News::Status(-1)];
        all.iter().for_each(|one| one.tell(to.as_fd()));
        drop(to);
        for one in all {
            assert_eq!(News::hear(from.as_fd()), Some(one));
        }
        assert_eq!(News::hear(from.as_fd()), None);
    }
}

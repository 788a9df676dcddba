//! The way to a daemon, for its clients.

use crate::daemon::asked::Asked;
use crate::daemon::link::{Link, Refused};
use crate::daemon::place;
use crate::daemon::wire::{
    BUILD, Hello, LIMIT, Message, Outcome, PROGRAMS, QUERY, ROWS, Refusal, WORKER, Welcome,
};
use crate::sys::{packet, pidfd};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How long a daemon may take to answer.
const ANSWER: u16 = 5000;

/// A daemon that has answered.
#[derive(Debug, Clone)]
pub struct Door {
    path: PathBuf,
    pub welcome: Welcome,
    /// What a worker is asked for, where that is not what this process was asked for.
    words: Option<Vec<OsString>>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoDoor {
    /// No daemon listens there.
    #[error("nobody listens there")]
    Nobody,
    /// Whoever listens is not root.
    #[error("it is uid {0}'s, and a daemon is root's")]
    NotRoots(u32),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("it does not answer ({0})")]
    Silent(#[source] io::Error),
}

impl NoDoor {
    /// What has come in the place of an answer.
    pub fn of(error: io::Error) -> Self {
        let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Refused>()).copied();
        refused.map_or(Self::Silent(error), Self::Refused)
    }
}

impl Door {
    /// Asks whoever listens at `path` for a word.
    ///
    /// # Errors
    /// There is nobody, or not one who serves us.
    pub fn found(path: &Path) -> Result<Self, NoDoor> {
        match answered(&knock(path, QUERY)?)? {
            Message::Welcome(welcome) if welcome.build != BUILD => Err(Refused(Refusal::Version).into()),
            Message::Welcome(welcome) => Ok(Self { path: path.to_owned(), welcome, words: None }),
            _ => Err(Refused(Refusal::Malformed).into()),
        }
    }

    /// Where nobody listens.
    #[cfg(test)]
    pub fn to_nobody() -> Self {
        Self { path: "/no/such/daemon.sock".into(), welcome: Welcome::default(), words: None }
    }

    /// Asks once more whoever listens there.
    ///
    /// # Errors
    /// As [`Self::found`].
    pub fn found_again(&self) -> Result<Self, NoDoor> {
        Ok(Self { words: self.words.clone(), ..Self::found(&self.path)? })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a process of this user's workers has been killed for the user's limit of memory since this daemon was found.
    pub fn has_lacked_memory(&self) -> bool {
        let now = Self::found(&self.path).map(|door| door.welcome);
        now.is_ok_and(|now| now.pid == self.welcome.pid && now.killed > self.welcome.killed)
    }

    /// The same, for a worker that is asked for `words`.
    #[must_use]
    pub fn asking(self, words: Vec<OsString>) -> Self {
        Self { words: Some(words), ..self }
    }

    /// What a worker is asked for.
    pub fn asked(&self) -> Asked {
        let here = Asked::here();
        Asked { words: self.words.clone().unwrap_or(here.words), ..here }
    }

    /// A connection for our worker, with the eBPF programs of whoever listens there now.
    ///
    /// # Errors
    /// There is nobody, or not one who tells us.
    pub fn programs(&self) -> Result<OwnedFd, NoDoor> {
        let core = knock(&self.path, PROGRAMS)?;
        match answered(&core)? {
            Message::Done(Outcome { error: 0, .. }) => Ok(core),
            _ => Err(Refused(Refusal::Malformed).into()),
        }
    }

    /// A worker of our own, at the other end of a link. From the process that is to be the program's parent.
    ///
    /// # Errors
    /// The daemon is gone by now.
    pub fn worker(&self) -> Result<Link, NoDoor> {
        Ok(Link::new(knock(&self.path, WORKER)?))
    }
}

/// The core's next word.
fn answered(core: &OwnedFd) -> Result<Message, NoDoor> {
    let heard = || -> io::Result<Message> {
        let mut fds = [PollFd::new(core.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, ANSWER)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let packet = packet::receive(core.as_fd(), LIMIT, MsgFlags::MSG_DONTWAIT)?;
        let packet = packet.ok_or(io::ErrorKind::ConnectionReset)?;
        Message::parse(&packet.bytes).map_err(|refusal| io::Error::other(Refused(refusal)))
    };
    match heard().map_err(NoDoor::of)? {
        Message::Refused(refused) => {
            Err(Refused(Refusal::of(refused.reason).unwrap_or(Refusal::Failed)).into())
        }
        message => Ok(message),
    }
}

/// Whether this process is in another user namespace than the first, which knows all users (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// A connection to the daemon at `path`, which has been told what is wanted.
///
/// # Errors
/// There is nobody, or not root.
pub fn knock(path: &Path, wants: u32) -> Result<OwnedFd, NoDoor> {
    let socket = place::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied => {
            NoDoor::Nobody
        }
        _ => NoDoor::Silent(error),
    })?;
    let owner = getsockopt(&socket, PeerCredentials).map_err(|errno| NoDoor::Silent(errno.into()))?.uid();
    // A user namespace that does not know root shows somebody else in its place; who is in one is not served.
    if in_user_namespace() {
        return Err(Refused(Refusal::Namespace).into());
    }
    if owner != 0 {
        return Err(NoDoor::NotRoots(owner));
    }
    let own = pidfd::open(Pid::this()).map_err(NoDoor::Silent)?;
    let with = if wants == QUERY { &[] } else { &[own.as_fd()][..] };
    let build = if wants == PROGRAMS { ROWS } else { BUILD };
    let hello = Message::Hello(Hello { wants, build });
    let say = |with| packet::send(socket.as_fd(), &hello.to_bytes(), with, MsgFlags::empty());
    // A daemon that takes none knows who we are.
    let is_refused = |error: &io::Error| error.raw_os_error() == Some(libc::EPERM);
    let said = say(with).or_else(|error| if is_refused(&error) { say(&[]) } else { Err(error) });
    match said {
        // Whoever does not want to hear it has said why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(socket),
        said => said.map(|()| socket).map_err(NoDoor::Silent),
    }
}

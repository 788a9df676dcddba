//! pid 1 of a namespace that a restart by a daemon makes: the parent of the program, as the front is outside of it.
//!
//! ```text
//!  front ─▶ init (user, pid and mount namespace; time namespace of its children) ─▶ processes of the program
//!     └ link ┘└── link ── worker, which came in from outside
//! ```
//! It is a fork of the front's, in the job's control group and in its session, and so are the processes that it forks for the
//! worker. It ends as the program's first process has ended, once nothing is left of that and the worker has had its last
//! word; what is left in the namespace then, the kernel ends.

use super::birth;
use crate::daemon::link::{Heard, Link, Offsets, Share, Word};
use crate::job::ended::{Ended, FAILED};
use crate::job::namespace;
use crate::job::signals::Signals;
use crate::object::terminal;
use crate::rebuild::clocks;
use crate::sys::ids::FsIds;
use crate::sys::wait::{self, Change};
use crate::sys::{clone, spawn};
use crate::task::limits;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// One that was forked.
pub struct Made {
    pub pid: Pid,
    /// The front's link to it.
    pub front: Link,
    /// The worker's end of its link.
    pub worker: OwnedFd,
}

/// Forks it. Only while this process has one thread.
///
/// # Errors
/// What the kernel refuses it: nothing is left of it then.
pub fn fork(share: Share) -> io::Result<Made> {
    let (worker, its) = pair()?;
    let (front, fronts) = pair()?;
    let user = FsIds::current();
    let new = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    if let Some(pid) = clone::fork(new.bits() as u64, None)? {
        drop((its, fronts));
        let front = Link::new(front);
        let number = match front.hear()?.map(|heard| heard.word) {
            Some(Word::Made(0)) => return Ok(Made { pid, front, worker }),
            Some(Word::Made(number)) => -number,
            _ => libc::EIO,
        };
        wait::for_end(pid)?;
        return Err(io::Error::from_raw_os_error(number));
    }
    drop((worker, front));
    let done = begin(&user, share, (its, fronts)).and_then(Init::serve);
    std::process::exit(done.unwrap_or(Ended::Exited(FAILED)).exit_status().into())
}

/// Gives init a link to another worker; that one's end of it.
///
/// # Errors
/// It is gone.
pub fn link_anew(init: &Link) -> io::Result<OwnedFd> {
    let (worker, its) = pair()?;
    init.say(&Word::Kept(true), &[its.as_fd()])?;
    Ok(worker)
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

struct Init {
    /// None once the worker is gone.
    link: Option<Link>,
    /// None once the front is.
    front: Option<Link>,
    signals: Signals,
    root: Option<Pid>,
    /// The worker has seen the program: what ends before that stays there to be seen.
    is_known: bool,
    ended: Option<Ended>,
    /// The worker has been told that nothing is left.
    is_over: bool,
}

fn begin(user: &FsIds, share: Share, (link, front): (OwnedFd, OwnedFd)) -> io::Result<Init> {
    let (link, front) = (Link::new(link), Link::new(front));
    let made = namespace::furnish(user, share.last);
    let number = made.as_ref().err().map_or(0, |error| -error.raw_os_error().unwrap_or(libc::EIO));
    front.say(&Word::Made(number), &[])?;
    made?;
    // For the processes that are forked here: each begins with all that a program may have open.
    limits::raise_own();
    spawn::close_all_but(&link.fds().chain(front.fds()).collect::<Vec<_>>())?;
    let signals = Signals::listen()?;
    let (link, front) = (Some(link), Some(front));
    Ok(Init { link, front, signals, root: None, is_known: true, ended: None, is_over: false })
}

impl Init {
    fn serve(mut self) -> io::Result<Ended> {
        loop {
            self.sleep()?;
            while self.signals.take().is_some() {}
            self.listen();
            self.listen_to_front();
            let is_alone = self.is_known && self.reap();
            match self.root {
                // What was made of the program has not run: the kernel ends it with this.
                None if self.link.is_none() => return Ok(Ended::Exited(FAILED)),
                Some(_) if self.link.is_none() && is_alone => {
                    // Who has come in from outside (`attach`) has the last word.
                    namespace::wait_to_be_alone();
                    return Ok(self.ended.unwrap_or(Ended::Exited(FAILED)));
                }
                _ => {}
            }
            if is_alone && self.root.is_some() && !self.is_over {
                self.is_over = true;
                self.tell(&Word::Over(true));
            }
        }
    }

    fn sleep(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        if !self.is_known {
            fds.clear();
        }
        let of_links = self.link.iter().chain(&self.front).flat_map(Link::fds);
        fds.extend(of_links.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn listen(&mut self) {
        while let Some(link) = &self.link {
            let Heard { word, descriptors } = match link.hear_what_waits() {
                Ok(None) => return,
                Ok(Some(heard)) => heard,
                Err(_) => {
                    (self.link, self.is_known) = (None, true);
                    return;
                }
            };
            let made = match word {
                Word::Root(root) => {
                    (self.root, self.is_known) = (Some(Pid::from_raw(root)), false);
                    continue;
                }
                Word::Clocks(Offsets { monotonic, boottime }) => {
                    clocks::enter((monotonic, boottime)).map(|_| 0)
                }
                Word::Fork(fork) => birth::fork(fork, &descriptors, true),
                Word::Terminal(flags) => {
                    // That the worker is gone is seen by the next look.
                    let _ = link.say_opened(&Word::Made(0), terminal::opened(flags));
                    continue;
                }
                Word::Foreground(group) => terminal::give(Pid::from_raw(group)).map(|()| 0),
                Word::Running(_) => {
                    self.is_known = true;
                    continue;
                }
                _ => continue,
            };
            self.tell(&Word::made(made));
        }
    }

    /// What the front says is that there is another worker.
    fn listen_to_front(&mut self) {
        while let Some(front) = &self.front {
            let Heard { word, descriptors } = match front.hear_what_waits() {
                Ok(None) => return,
                Ok(Some(heard)) => heard,
                Err(_) => {
                    self.front = None;
                    return;
                }
            };
            if matches!(word, Word::Kept(_)) {
                self.link = descriptors.into_iter().next().map(Link::new);
                // What the one before has heard, this one has not.
                self.is_over = false;
                if let Some(ended) = self.ended {
                    self.tell(&Word::Ended(ended.to_wait()));
                }
            }
        }
    }

    /// Takes in what children do; true when none is left.
    fn reap(&mut self) -> bool {
        loop {
            match wait::next_change() {
                Ok(Some((pid, change))) if Some(pid) == self.root => match change {
                    Change::Ended(ended) => {
                        self.ended = Some(ended);
                        self.tell(&Word::Ended(ended.to_wait()));
                    }
                    Change::Stopped => self.tell_of_stop(),
                    Change::Continued | Change::TraceStop(_) => {}
                },
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Whoever waits for the front is to see it.
    fn tell_of_stop(&self) {
        if let Some(front) = &self.front {
            let _ = front.say(&Word::Stopped(true), &[]);
        }
    }

    fn tell(&self, word: &Word) {
        // That the worker is gone is seen by whoever listens.
        if let Some(link) = &self.link {
            let _ = link.say(word, &[]);
        }
    }
}

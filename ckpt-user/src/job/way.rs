//! How ckptbpf comes by what takes rights: it has them, a daemon lends them, or it does without.

use super::ended::Ended;
use super::options::LaunchOptions;
use super::terminal;
use crate::daemon::link::{Heir, Link};
use crate::daemon::place;
use crate::front;
use crate::front::door::{Door, NoDoor};
use crate::sys::clone;
use nix::unistd::geteuid;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// Where a verb's work is done.
#[derive(Debug, Clone)]
pub enum Way {
    /// Here: by root, or with capabilities.
    Privileged,
    /// By a worker of the daemon behind this door; here is its front.
    Daemon(Door),
    /// Here, with what an ordinary user may do.
    Alone,
    /// Here is the worker, and this leads to its front.
    Worker(Arc<Link>),
    /// The same in the place of a worker that was killed: whatever was asked for runs.
    Heir(Arc<Link>, Heir),
}

impl Way {
    /// The first of these that there is. Says why a daemon that is there is done without.
    pub fn choose() -> Self {
        if geteuid().is_root() || clone::may_choose_ids() {
            return Self::Privileged;
        }
        for path in place::candidates(|name| std::env::var_os(name)) {
            match Door::found(&path) {
                Ok(door) => return Self::Daemon(door),
                Err(NoDoor::Nobody) => {}
                Err(other) => done_without(&path, &other),
            }
        }
        Self::Alone
    }

    /// The same; of a worker `words` are asked, and not what this process was asked for.
    #[must_use]
    pub fn asking(self, words: Vec<OsString>) -> Self {
        match self {
            Self::Daemon(door) => Self::Daemon(door.asking(words)),
            other => other,
        }
    }
}

/// Has a daemon's worker do it, where that is the way; none where it is to be done here. `program` as for [`front::go`].
pub fn by_daemon(
    way: &Way,
    program: Option<&LaunchOptions>,
    running: &mut dyn FnMut(),
) -> Option<anyhow::Result<Ended>> {
    let Way::Daemon(door) = way else { return None };
    let ended = front::go(door, program, running);
    match ended.as_ref().err().and_then(|error| error.downcast_ref::<NoDoor>()) {
        Some(why) => {
            done_without(door.path(), why);
            None
        }
        None => Some(ended),
    }
}

/// What is said of a daemon that does not serve us.
fn done_without(path: &Path, why: &NoDoor) {
    terminal::say(&format!("the daemon at {} is done without: {why}", path.display()));
}

//! How ckptbpf comes by what takes rights: it has them, a daemon lends them, or it does without.

use super::terminal;
use crate::daemon::link::Link;
use crate::daemon::place;
use crate::front::door::{Door, NoDoor};
use crate::sys::clone;
use nix::unistd::geteuid;
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
}

/// What is said of a daemon that does not serve us.
pub fn done_without(path: &Path, why: &NoDoor) {
    terminal::say(&format!("the daemon at {} is done without: {why}", path.display()));
}

//! Control groups of users' workers, below the daemon's own: what the workers of one user take, those of others do not lack.
//!
//! ```text
//! v2  …/ckptbpf.service/core                                the core: there are no processes in inner groups
//!     …/ckptbpf.service/ckptbpf-77-9001-u1000               workers of uid 1000, of the daemon that is process 77
//! v1  /sys/fs/cgroup/{memory,pids}/…/ckptbpf-77-9001-u1000
//! ```
//! A group is made with a user's first worker, and goes after the last. rmdir(2) takes none away that has processes, so nobody counts
//! them: what cannot go yet is tried again whenever a worker begins or ends.

mod found;
mod names;
mod top;

use names::Names;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use top::Top;

pub use top::{CORE, has_others};

/// What the workers of one user may have together. None: what the daemon may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Threads.
    pub tasks: Option<u32>,
}

/// The groups of one daemon. Its lock is held over system calls: whoever waits for it is in a thread of its own.
#[derive(Debug)]
pub struct Subgroups {
    tops: Vec<Top>,
    names: Names,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Users who may have a group.
    users: BTreeSet<u32>,
    /// Processes that were killed for the limit of memory of groups that are gone.
    killed: HashMap<u32, u64>,
    /// Nobody is taken in any more.
    is_over: bool,
}

impl Subgroups {
    /// Looks where they can be, and takes away what daemons that are gone have left. None where there is nothing to limit, or no way to:
    /// that is said.
    pub fn begin(share: Share) -> Option<Self> {
        if share == Share::default() {
            return None;
        }
        let without =
            |error: &dyn std::fmt::Display| log::warn!("workers have no limits of their own: {error}");
        let names = Names::own().inspect_err(|error| without(error)).ok()?;
        let tops = found::found(share, &names).inspect_err(|error| without(error)).ok()?;
        let folders = tops.iter().map(|top| top.folder.display().to_string()).collect::<Vec<_>>();
        log::info!("workers of each user have limits of their own, below {}", folders.join(" and "));
        let subgroups = Self { tops, names, state: Mutex::default() };
        subgroups.sweep();
        Some(subgroups)
    }

    /// Takes a worker into its user's group.
    ///
    /// # Errors
    /// What the kernel says: it has no limits then.
    pub fn enter(&self, uid: u32, worker: u32) -> io::Result<()> {
        let mut state = self.state();
        if state.is_over {
            return Err(io::Error::other("the daemon ends"));
        }
        self.tidy(&mut state);
        state.users.insert(uid);
        let name = self.names.of_user(uid);
        let entered = self.tops.iter().try_for_each(|top| top.enter(&name, worker));
        entered.inspect_err(|_| self.tidy(&mut state))
    }

    /// Groups without a process go. Whether this user has none then.
    pub fn left(&self, uid: u32) -> bool {
        let mut state = self.state();
        self.tidy(&mut state);
        !state.users.contains(&uid)
    }

    /// How many processes of a user's workers the kernel has killed for that user's limit of memory.
    pub fn killed(&self, uid: u32) -> u32 {
        let state = self.state();
        let before = state.killed.get(&uid).copied().unwrap_or_default();
        u32::try_from(before + self.killed_now(uid)).unwrap_or(u32::MAX)
    }

    /// Of groups whose workers go on nothing changes.
    pub fn end(&self) {
        // Held to the end: a thread may still be about to take one in.
        let mut state = self.state();
        state.is_over = true;
        self.tidy(&mut state);
        self.sweep();
        self.tops.iter().for_each(Top::leave);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn killed_now(&self, uid: u32) -> u64 {
        let name = self.names.of_user(uid);
        self.tops.iter().map(|top| top.killed(&name)).sum()
    }

    fn tidy(&self, state: &mut State) {
        let State { users, killed, .. } = state;
        users.retain(|uid| {
            let name = self.names.of_user(*uid);
            let before = self.killed_now(*uid);
            // Each is tried, whatever has become of the others.
            let staying = self.tops.iter().filter(|top| !top.remove(&name)).count();
            let gone = before.saturating_sub(self.killed_now(*uid));
            if gone > 0 {
                log::warn!("uid {uid}: {gone} processes of its workers were killed for lack of memory (--worker-memory)");
                *killed.entry(*uid).or_default() += gone;
            }
            staying > 0
        });
    }

    /// Takes away what is empty, and is a daemon's that is gone. What is not empty has limits again, should it have lost them.
    fn sweep(&self) {
        for top in &self.tops {
            let left = top.names().into_iter().filter(|name| self.names.is_left_over(name));
            left.filter(|name| !top.remove(name)).for_each(|name| top.limit_again(&name));
        }
    }
}

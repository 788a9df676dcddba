//! How much of the daemon one user may have. Pure: what counts and when is the caller's.

use super::rates::Rates;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A user's jobs may begin one after each such pause, or faster for a while: each is a process that begins as root, and lines in the log.
const PAUSE: Duration = Duration::from_millis(250);

/// So many at least may begin at once, and else twice as many as there may be.
const AT_ONCE: u32 = 64;

/// What one user, and all together, may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Workers of one user: jobs that run.
    pub workers: u32,
    /// Connections of one user that have no worker.
    pub connections: u32,
    /// Connections of all users that have no worker, and workers of all users.
    pub all: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { workers: 32, connections: 32, all: 1024 }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Used {
    workers: u32,
    connections: u32,
}

/// Who has how much now.
#[derive(Debug)]
pub struct Usage {
    limits: Limits,
    of: HashMap<u32, Used>,
    all: u32,
    all_workers: u32,
    begun: Rates,
}

/// What there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Connections,
    Workers,
    /// Workers have begun too often.
    Often,
}

impl Usage {
    pub fn new(limits: Limits) -> Self {
        let begun = Rates::new(limits.workers.saturating_mul(2).max(AT_ONCE), PAUSE);
        Self { limits, of: HashMap::new(), all: 0, all_workers: 0, begun }
    }

    /// A connection of this user's begins.
    ///
    /// # Errors
    /// There is no room for it, and nothing has been counted.
    pub fn connect(&mut self, uid: u32) -> Result<(), Full> {
        let used = self.of.get(&uid).copied().unwrap_or_default();
        if self.all >= self.limits.all || used.connections >= self.limits.connections {
            return Err(Full::Connections);
        }
        self.all += 1;
        self.of.entry(uid).or_default().connections += 1;
        Ok(())
    }

    /// One that [`Self::connect`] has counted is over.
    pub fn disconnect(&mut self, uid: u32) {
        self.all = self.all.saturating_sub(1);
        self.give_back(uid, |used| &mut used.connections);
    }

    /// A connection becomes a worker's.
    ///
    /// # Errors
    /// There is no room for it, and nothing has changed.
    pub fn promote(&mut self, uid: u32) -> Result<(), Full> {
        if self.workers(uid) >= self.limits.workers || self.all_workers >= self.limits.all {
            return Err(Full::Workers);
        }
        self.disconnect(uid);
        self.all_workers += 1;
        self.of.entry(uid).or_default().workers += 1;
        Ok(())
    }

    /// A worker of this user's is about to begin.
    ///
    /// # Errors
    /// It is not to, as too many have.
    pub fn begin(&mut self, uid: u32, now: Instant) -> Result<(), Full> {
        if self.begun.take(uid, now) { Ok(()) } else { Err(Full::Often) }
    }

    /// A worker has ended.
    pub fn ended(&mut self, uid: u32) {
        self.all_workers = self.all_workers.saturating_sub(1);
        self.give_back(uid, |used| &mut used.workers);
    }

    /// Workers that this user has.
    pub fn workers(&self, uid: u32) -> u32 {
        self.of.get(&uid).map_or(0, |used| used.workers)
    }

    /// Workers that a user may have.
    pub fn most_workers(&self) -> u32 {
        self.limits.workers
    }

    fn give_back(&mut self, uid: u32, which: impl Fn(&mut Used) -> &mut u32) {
        if let Some(used) = self.of.get_mut(&uid) {
            let count = which(used);
            *count = count.saturating_sub(1);
            if *used == Used::default() {
                self.of.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_user_who_has_all_of_theirs_takes_nothing_of_another_s() {
        let mut usage = Usage::new(Limits { workers: 2, connections: 3, all: 5 });
        for _ in 0..2 {
            usage.connect(1).unwrap();
            usage.promote(1).unwrap();
        }
        usage.connect(1).unwrap();
        assert_eq!(usage.promote(1), Err(Full::Workers));
        usage.connect(1).unwrap();
        usage.connect(1).unwrap();
        assert_eq!(usage.connect(1), Err(Full::Connections));
        usage.connect(2).unwrap();
        usage.promote(2).unwrap();
        assert_eq!((usage.workers(1), usage.workers(2)), (2, 1));
        usage.ended(1);
        usage.promote(1).unwrap();
        // All together.
        for uid in 3..5 {
            usage.connect(uid).unwrap();
            usage.promote(uid).unwrap();
        }
        usage.connect(5).unwrap();
        assert_eq!(usage.promote(5), Err(Full::Workers));
        usage.ended(3);
        usage.promote(5).unwrap();
    }

    proptest! {
        /// Whatever comes and goes, nobody has more than the limits, and nothing is left at the end.
        #[test]
        fn nobody_has_more_than_the_limits(steps in prop::collection::vec((0u8..4, 0u32..3), 0..200)) {
            let limits = Limits { workers: 2, connections: 3, all: 5 };
            let mut usage = Usage::new(limits);
            let (mut connected, mut working) = ([0u32; 3], [0u32; 3]);
            for (step, uid) in steps {
                let at = uid as usize;
                match step {
                    0 if usage.connect(uid).is_ok() => connected[at] += 1,
                    1 if connected[at] > 0 => {
                        usage.disconnect(uid);
                        connected[at] -= 1;
                    }
                    2 if connected[at] > 0 && usage.promote(uid).is_ok() => {
                        connected[at] -= 1;
                        working[at] += 1;
                    }
                    3 if working[at] > 0 => {
                        usage.ended(uid);
                        working[at] -= 1;
                    }
                    _ => {}
                }
                prop_assert!(connected.iter().all(|n| *n <= limits.connections));
                prop_assert!(working.iter().all(|n| *n <= limits.workers));
                prop_assert!(connected.iter().sum::<u32>() <= limits.all);
                prop_assert!(working.iter().sum::<u32>() <= limits.all);
                prop_assert_eq!(usage.workers(uid), working[at]);
            }
            for uid in 0..3 {
                (0..connected[uid as usize]).for_each(|_| usage.disconnect(uid));
                (0..working[uid as usize]).for_each(|_| usage.ended(uid));
            }
            prop_assert!(usage.of.is_empty() && usage.all == 0 && usage.all_workers == 0);
        }
    }
}

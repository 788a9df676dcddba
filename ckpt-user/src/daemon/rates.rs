//! How often each user may have something done: so many times at once, and once more after each pause. Pure: what time it is is the
//! caller's to say.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Who has had it done how often.
#[derive(Debug)]
pub struct Rates {
    most: u32,
    pause: Duration,
    /// When each has all of theirs again.
    full_again: HashMap<u32, Instant>,
}

impl Rates {
    pub fn new(most: u32, pause: Duration) -> Self {
        Self { most, pause, full_again: HashMap::new() }
    }

    /// One more of this user's; whether that may be.
    pub fn take(&mut self, uid: u32, now: Instant) -> bool {
        self.full_again.retain(|_, full| *full > now);
        let full = self.full_again.get(&uid).copied().unwrap_or(now) + self.pause;
        let may_be = full <= now + self.pause * self.most;
        if may_be {
            self.full_again.insert(uid, full);
        }
        may_be
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAUSE: Duration = Duration::from_millis(100);

    #[test]
    fn so_many_at_once_and_then_one_after_each_pause() {
        let (mut rates, now) = (Rates::new(3, PAUSE), Instant::now());
        let mut taken = |uid, at| (0..10).filter(|_| rates.take(uid, at)).count();
        assert_eq!((taken(1, now), taken(2, now)), (3, 3), "each has their own");
        assert_eq!(taken(1, now + PAUSE / 2), 0);
        assert_eq!(taken(1, now + PAUSE), 1);
        assert_eq!(taken(1, now + PAUSE * 3), 2);
        assert_eq!(taken(1, now + PAUSE * 99), 3);
        assert_eq!(rates.full_again.len(), 1, "who has all of theirs is forgotten");
    }

    proptest! {
        /// However they come, nobody has more than the pauses give them.
        #[test]
        fn nobody_has_more(steps in prop::collection::vec(0u32..300, 0..200)) {
            let (mut rates, begin) = (Rates::new(5, PAUSE), Instant::now());
            let (mut now, mut taken) = (begin, 0);
            for step in steps {
                now += Duration::from_millis(step.into());
                taken += u128::from(rates.take(7, now));
                prop_assert!(taken <= 5 + (now - begin).as_millis() / PAUSE.as_millis());
            }
        }
    }
}

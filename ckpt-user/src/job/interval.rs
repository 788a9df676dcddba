//! When the next checkpoint is due. Pure: time is passed in, as the time since the job began.
//!
//! Due times lie on a grid (start + k × interval), so they do not drift however long a checkpoint takes. Points
//! that pass while one is being written are skipped, not made up for. After failures the distance doubles.

use std::time::Duration;

/// The longest distance after failures, unless the interval itself is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// The schedule of a job's checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// None: on request only.
    interval: Option<Duration>,
    origin: Duration,
    due: Option<Duration>,
    failures: u32,
}

impl Schedule {
    /// A schedule that begins now. An interval of 0 is none.
    pub fn new(interval: Option<Duration>, now: Duration) -> Self {
        let interval = interval.filter(|interval| !interval.is_zero());
        let due = interval.map(|interval| now.saturating_add(interval));
        Self { interval, origin: now, due, failures: 0 }
    }

    /// When the next one is due; none while one is being taken or written, and when only requests count.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// How long to sleep until it is due; 0: now.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(now))
    }

    /// A checkpoint begins, on schedule or on request: nothing is due before it is over.
    pub fn started(&mut self) {
        self.due = None;
    }

    /// It is durable: the next grid point is due.
    pub fn succeeded(&mut self, now: Duration) {
        self.failures = 0;
        self.due = self.after(now, Duration::ZERO);
    }

    /// It failed: the first grid point after a distance that doubles with each failure in a row.
    pub fn failed(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.saturating_sub(1).min(16);
        let pause = self.interval.map_or(Duration::ZERO, |interval| {
            let longest = LONGEST_BACKOFF.max(interval);
            interval.saturating_mul((1 << doublings) - 1).min(longest.saturating_sub(interval))
        });
        self.due = self.after(now, pause);
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The first grid point later than `now + pause`.
    fn after(&self, now: Duration, pause: Duration) -> Option<Duration> {
        let interval = self.interval?;
        let passed = now.saturating_add(pause).saturating_sub(self.origin);
        let points = passed.as_nanos() / interval.as_nanos().max(1) + 1;
        let nanos = points.checked_mul(interval.as_nanos()).and_then(|nanos| u64::try_from(nanos).ok());
        nanos.and_then(|nanos| self.origin.checked_add(Duration::from_nanos(nanos)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn without_an_interval_nothing_is_ever_due() {
        for none in [None, Some(Duration::ZERO)] {
            let mut schedule = Schedule::new(none, S(3));
            assert_eq!(schedule.due(), None);
            schedule.started();
            schedule.failed(S(4));
            assert_eq!(schedule.wait(S(9)), None);
        }
    }

    #[test]
    fn ticks_that_pass_while_one_is_written_are_skipped() {
        let mut schedule = Schedule::new(Some(S(10)), S(0));
        assert_eq!(schedule.wait(S(4)), Some(S(6)));
        schedule.started();
        assert_eq!(schedule.due(), None);
        schedule.succeeded(S(37));
        assert_eq!(schedule.due(), Some(S(40)));
        assert_eq!(schedule.wait(S(55)), Some(S(0)));
    }

    #[test]
    fn failures_space_the_tries_out_and_a_success_ends_that() {
        let mut schedule = Schedule::new(Some(S(10)), S(0));
        let mut tries = Vec::new();
        for _ in 0..10 {
            let due = schedule.due().unwrap();
            schedule.started();
            schedule.failed(due);
            tries.push((schedule.due().unwrap() - due).as_secs());
        }
        assert_eq!(tries, [10, 20, 40, 80, 160, 320, 600, 600, 600, 600]);
        let due = schedule.due().unwrap();
        schedule.succeeded(due);
        assert_eq!((schedule.due().unwrap() - due, schedule.failures()), (S(10), 0));
    }

    proptest! {
        #[test]
        fn due_times_stay_on_the_grid_and_ahead(
            interval_ms in 1u64..100_000, start in 0u64..1000,
            steps in proptest::collection::vec((0u64..500_000, any::<bool>()), 1..40),
        ) {
            let interval = Duration::from_millis(interval_ms);
            let mut schedule = Schedule::new(Some(interval), S(start));
            for (busy, ok) in steps {
                let begun = schedule.due().unwrap();
                schedule.started();
                let now = begun + Duration::from_millis(busy);
                if ok { schedule.succeeded(now) } else { schedule.failed(now) }
                let due = schedule.due().unwrap();
                prop_assert!(due > now);
                prop_assert_eq!((due - S(start)).as_nanos() % interval.as_nanos(), 0);
                prop_assert!(!ok || due - now <= interval);
                prop_assert!(due - now <= LONGEST_BACKOFF + interval);
            }
        }
    }
}

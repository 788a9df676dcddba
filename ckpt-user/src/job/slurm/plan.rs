//! When a job's last checkpoint is to begin.

use super::costs::Spent;
use super::left::Left;
use std::time::Duration;

/// Beyond what a checkpoint takes, at least: Slurm ends a job by a clock that it looks at every half minute, and squeue(1) may
/// take its time.
const MARGIN: Duration = Duration::from_secs(60);
/// The last checkpoint may have more to write than those before: twice as much, and what a busy disk takes.
const MORE: Duration = Duration::from_secs(15);
/// A limit may be changed (scontrol update): it is asked for again after this.
pub const ASK_AGAIN: Duration = Duration::from_secs(300);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look again after this: there is nothing to do, or nothing that could be done.
    Wait(Duration),
    /// A checkpoint that is not the last: there is none yet by which to know what the last one takes.
    Try,
    /// The last checkpoint, now.
    Last,
}

/// With so much left of what the job `had` in all, and by what checkpoints have cost; none: there was none, and none has been tried.
pub fn step(left: Left, had: Duration, cost: Option<Duration>) -> Step {
    let Left::Time(left) = left else { return Step::Wait(ASK_AGAIN) };
    let needed = needed(cost.unwrap_or_default());
    // There is no time for one that is meant to be the last, and never was: those of the interval are all that there are.
    if had <= needed {
        return Step::Wait(ASK_AGAIN);
    }
    let Some(rest) = left.checked_sub(needed).filter(|rest| !rest.is_zero()) else { return Step::Last };
    let until_try = match (cost, left.checked_sub(had / 2)) {
        (Some(_), _) => rest,
        (None, Some(until)) if !until.is_zero() => until,
        (None, _) => return Step::Try,
    };
    Step::Wait(rest.min(until_try).min(ASK_AGAIN))
}

/// From the beginning of the last checkpoint to the end of the job, where the slowest of those before it took `cost`.
pub fn needed(cost: Duration) -> Duration {
    cost.saturating_add(MARGIN.max(cost.saturating_mul(2).saturating_add(MORE)))
}

/// Whether a run was in vain, with so much left of the job now: from where the program ran again to where the last checkpoint was due it
/// was less than a tenth of what came before, and no more of it was used. The next run would come to as little.
pub fn is_in_vain(left: Left, spent: &Spent) -> bool {
    let Left::Time(left) = left else { return false };
    let was_left = left.saturating_add(spent.since).saturating_sub(needed(spent.cost));
    [was_left, spent.ran].iter().all(|time| time.saturating_mul(10) < spent.before)
}

/// Between the tasks of a step: a thousand that ask Slurm in one moment hold up its controller, and so do their last checkpoints the
/// disks. Ten milliseconds for each task before this one.
pub fn apart(task: u32) -> Duration {
    Duration::from_millis(10).saturating_mul(task)
}

/// When to ask for the last checkpoint once more: by then it is over, and if it had succeeded nobody would be there to ask.
pub fn again(cost: Duration) -> Duration {
    cost.saturating_mul(2).saturating_add(MORE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const DAY: Duration = Duration::from_secs(86_400);

    fn at(left: u64, cost: u64) -> Step {
        step(Left::Time(S(left)), DAY, Some(S(cost)))
    }

    #[test]
    fn the_last_checkpoint_is_as_early_as_it_takes_and_a_minute_at_least() {
        assert_eq!(at(3600, 1), Step::Wait(ASK_AGAIN));
        assert_eq!(at(100, 0), Step::Wait(S(40)));
        assert_eq!(at(60, 0), Step::Last);
        assert_eq!(at(0, 1), Step::Last);
        assert_eq!(at(61, 1), Step::Last);
        assert_eq!(at(200, 60), Step::Wait(S(5)));
        assert_eq!(at(195, 60), Step::Last);
        assert_eq!(step(Left::Unlimited, Duration::ZERO, None), Step::Wait(ASK_AGAIN));
    }

    #[test]
    fn a_job_that_is_shorter_than_its_last_checkpoint_has_none() {
        assert_eq!(step(Left::Time(S(55)), S(60), Some(S(0))), Step::Wait(ASK_AGAIN));
        assert_eq!(step(Left::Time(S(60)), S(61), Some(S(0))), Step::Last);
    }

    #[test]
    fn where_none_was_taken_one_is_tried_halfway() {
        let step = |left| step(Left::Time(S(left)), S(1000), None);
        assert_eq!(step(1000), Step::Wait(ASK_AGAIN));
        assert_eq!(step(700), Step::Wait(S(200)));
        assert_eq!(step(500), Step::Try);
        assert_eq!(step(61), Step::Try);
        assert_eq!(step(60), Step::Last);
    }

    #[test]
    fn a_run_that_leaves_its_program_no_time_is_in_vain() {
        let spent =
            |before: u64, ran: u64| Spent { before: S(before), ran: S(ran), since: S(ran + 1), cost: S(1) };
        let in_vain = |left: u64, spent: Spent| is_in_vain(Left::Time(S(left)), &spent);
        assert!(in_vain(20, spent(540, 0)), "of ten minutes");
        assert!(in_vain(60, spent(540, 5)));
        // It would have had more time, and somebody has stopped it: preemption, a signal.
        assert!(!in_vain(3600, spent(540, 0)));
        assert!(!in_vain(60, spent(540, 60)));
        // A limit of a minute, and a signal in time.
        assert!(!in_vain(20, spent(5, 30)));
        assert!(!is_in_vain(Left::Unlimited, &spent(540, 0)));
        assert!(!in_vain(0, Spent { before: S(0), ran: S(0), since: S(0), cost: S(0) }));
    }

    #[test]
    fn the_tasks_of_a_step_keep_apart() {
        assert_eq!(apart(0), Duration::ZERO);
        assert_eq!(apart(1000), S(10));
        assert!(apart(u32::MAX) > apart(u32::MAX - 1));
    }

    proptest! {
        /// Whoever follows it begins the last checkpoint with as much time as it takes, and not before.
        #[test]
        fn it_begins_in_time(had in 1u64..1_000_000, cost in 0u64..1000, is_known in any::<bool>()) {
            let (had, cost) = (S(had), S(cost));
            let (mut left, mut known) = (had, is_known.then_some(cost));
            let mut looks = 0;
            loop {
                looks += 1;
                prop_assert!(looks < 10_000);
                match step(Left::Time(left), had, known) {
                    Step::Wait(_) if left.is_zero() => {
                        prop_assert!(had <= needed(known.unwrap_or_default()));
                        break;
                    }
                    Step::Wait(wait) => {
                        prop_assert!(!wait.is_zero());
                        left = left.saturating_sub(wait);
                    }
                    Step::Try => {
                        prop_assert!(known.is_none() && left <= had / 2);
                        known = Some(cost);
                        left = left.saturating_sub(cost);
                    }
                    Step::Last => {
                        let needed = needed(known.unwrap_or_default());
                        // Unless trying took the rest of the time.
                        prop_assert!(left <= needed && (!is_known || left == needed));
                        break;
                    }
                }
            }
        }

        #[test]
        fn a_minute_is_left_beyond_what_checkpoints_took(cost in 0u64..100_000) {
            prop_assert!(needed(S(cost)) >= S(cost + 60));
        }
    }
}

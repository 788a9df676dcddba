//! After the end: a job whose program was stopped with a checkpoint is queued again.

use super::ask;
use super::command::NoAnswer;
use super::costs::Spent;
use super::left::Told;
use super::place::Job;
use super::plan;
use crate::job::ended::{CHECKPOINTED, Ended, FAILED};
use crate::job::terminal::{duration, say};
use std::thread::sleep;
use std::time::Duration;

/// How often Slurm is asked, where it does not answer.
const TRIES: u32 = 4;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(3);

/// What is to be done about a job whose program was stopped with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    QueueAgain,
    /// Another run would come to nothing, as this one has, whose program ran after so long.
    InVain(Duration),
    /// This is what to exit with.
    Leave(u8),
}

/// Of a job that runs: also while Slurm still counts the answers to the signal that it has just sent (squeue(1), JOB STATE CODES).
const RUNS: &[&str] = &["RUNNING", "SIGNALING", "RESIZING"];

/// By what Slurm tells of the job; none: it does not. A job that is not running any more was ended by somebody: cancelled, at its
/// limit, or preempted. That is not undone, and the status is not one by which Slurm would do so (RequeueExit); nor is it for a run
/// in vain (`spent`: of one that began with a restart).
fn verdict(told: Option<Option<&Told>>, is_wanted: bool, spent: Option<&Spent>) -> Verdict {
    let in_vain =
        |told: &Told| spent.filter(|spent| told.left.is_some_and(|left| plan::is_in_vain(left, spent)));
    match told {
        Some(Some(told)) if !RUNS.contains(&told.state.as_str()) => {
            Verdict::Leave(Ended::Signaled(libc::SIGTERM).exit_status())
        }
        Some(Some(told)) if let Some(spent) = in_vain(told) => Verdict::InVain(spent.before),
        Some(Some(_)) if is_wanted => Verdict::QueueAgain,
        _ => Verdict::Leave(CHECKPOINTED),
    }
}

/// Queues the job again, if that `is_wanted`, nobody has ended it, and the program had time to run; what to exit with.
pub fn queue_again(job: &Job, is_wanted: bool, spent: Option<&Spent>) -> u8 {
    let (name, told_as) = (job.name(), job.told_as());
    let told = tried(|| ask::queue(&told_as));
    if let Err(error) = &told {
        say(&format!("what has become of job {name} is not known: {error}"));
    }
    // Of several tasks none ends the others: the script sees the status of all.
    let is_wanted = is_wanted && job.task.is_none();
    let told = told.ok();
    match verdict(told.as_ref().map(Option::as_ref), is_wanted, spent) {
        Verdict::InVain(before) => {
            let before = duration(before);
            say(&format!(
                "job {name} is not queued again: {before} had gone before its program ran, and its last checkpoint was \
                 due. Give it more time (--time), or restart it with --lazy; a new job goes on from there (--from)"
            ));
            FAILED
        }
        Verdict::Leave(status) => {
            if let Some(Some(told)) = told.filter(|_| status != CHECKPOINTED) {
                let state = told.state;
                say(&format!("job {name} is {state} by now: whether it is queued again is not for ckptbpf"));
            }
            status
        }
        Verdict::QueueAgain => {
            // Before it is done: Slurm ends the job with that, and whoever is in it.
            say(&format!("job {name} is queued again, and goes on from there"));
            let done = tried(|| ask::requeue(&told_as));
            done.map_or_else(
                |error| {
                    say(&format!("no, job {name} is not queued again: {error}"));
                    CHECKPOINTED
                },
                |()| 0,
            )
        }
    }
}

/// Again and again, while there is an error: Slurm may be busy, or its controller be started anew.
fn tried<T>(ask: impl Fn() -> Result<T, NoAnswer>) -> Result<T, NoAnswer> {
    for _ in 1..TRIES {
        match ask() {
            Err(NoAnswer::Failed { .. } | NoAnswer::Silent { .. }) => sleep(PAUSE),
            other => return other,
        }
    }
    ask()
}

#[cfg(test)]
mod tests {
    use super::super::left::Left;
    use super::*;

    #[test]
    fn what_somebody_has_ended_is_not_queued_again() {
        let told = |state: &str| Told { state: state.into(), left: None };
        let verdict = |told: Option<Option<&Told>>, is_wanted: bool| verdict(told, is_wanted, None);
        let running = told("RUNNING");
        assert_eq!(verdict(Some(Some(&running)), true), Verdict::QueueAgain);
        assert_eq!(verdict(Some(Some(&running)), false), Verdict::Leave(CHECKPOINTED));
        assert_eq!(verdict(Some(Some(&told("SIGNALING"))), true), Verdict::QueueAgain);
        for state in ["COMPLETING", "CANCELLED", "PENDING", "TIMEOUT", "SUSPENDED"] {
            for is_wanted in [true, false] {
                assert_eq!(verdict(Some(Some(&told(state))), is_wanted), Verdict::Leave(143), "{state}");
            }
        }
        // Nobody knows.
        assert_eq!(verdict(Some(None), true), Verdict::Leave(CHECKPOINTED));
        assert_eq!(verdict(None, true), Verdict::Leave(CHECKPOINTED));
    }

    #[test]
    fn a_run_in_vain_is_the_last_one_whoever_would_queue_it_again() {
        let seconds = Duration::from_secs;
        let told =
            |state: &str, left: u64| Told { state: state.into(), left: Some(Left::Time(seconds(left))) };
        let spent = Spent { before: seconds(540), ran: seconds(0), since: seconds(1), cost: seconds(1) };
        let of = |told: &Told, is_wanted: bool| verdict(Some(Some(told)), is_wanted, Some(&spent));
        for is_wanted in [true, false] {
            assert_eq!(of(&told("RUNNING", 30), is_wanted), Verdict::InVain(seconds(540)));
            assert_eq!(of(&told("COMPLETING", 30), is_wanted), Verdict::Leave(143));
        }
        assert_eq!(of(&told("RUNNING", 900), true), Verdict::QueueAgain);
        let nobody_knows = Told { left: None, ..told("RUNNING", 0) };
        assert_eq!(of(&nobody_knows, true), Verdict::QueueAgain);
        assert_eq!(verdict(None, true, Some(&spent)), Verdict::Leave(CHECKPOINTED));
    }

    #[test]
    fn an_answer_is_an_answer_and_what_cannot_be_run_is_not_tried_again() {
        use std::cell::Cell;
        let times = Cell::new(0);
        let count = || times.set(times.get() + 1);
        let done = tried(|| {
            count();
            Ok(7)
        });
        assert_eq!((done.unwrap(), times.get()), (7, 1));
        let source = || std::io::ErrorKind::NotFound.into();
        let none = tried::<()>(|| {
            count();
            Err(NoAnswer::CannotRun { program: "squeue".into(), source: source() })
        });
        assert_eq!((none.is_err(), times.get()), (true, 2));
    }
}

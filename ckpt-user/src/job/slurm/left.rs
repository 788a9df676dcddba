//! What Slurm tells of a job in its queue: its state, and how long it still has.

use std::time::Duration;

/// What is left of a job's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Time(Duration),
    /// It has no limit.
    Unlimited,
}

impl Left {
    /// By the variable that newer versions set in a job: seconds since 1970, against `now`.
    pub fn of_end(end: u64, now: u64) -> Self {
        Self::Time(Duration::from_secs(end.saturating_sub(now)))
    }

    /// A while later.
    #[must_use]
    pub fn after(self, passed: Duration) -> Self {
        match self {
            Self::Time(left) => Self::Time(left.saturating_sub(passed)),
            Self::Unlimited => Self::Unlimited,
        }
    }
}

/// What is told of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// `RUNNING`, `COMPLETING`, `PENDING` … (squeue(1), JOB STATE CODES).
    pub state: String,
    /// None of a job that has not begun (`NOT_SET`), or is beyond its limit (`INVALID`).
    pub left: Option<Left>,
}

/// What squeue(1) is asked for: of a job by its name, without a heading, state and time left. No time of day: that is told in the
/// time zone of whoever asks, and in a form of their choice.
pub fn question(job: &str) -> [&str; 5] {
    ["-h", "-o", "%T %L", "-j", job]
}

/// Its answer; none where it is not about one job that is there.
pub fn parse(answer: &str) -> Option<Told> {
    let mut lines = answer.lines().filter(|line| !line.trim().is_empty());
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let mut words = line.split_whitespace();
    let (state, time) = (words.next()?, words.next()?);
    let is_state = state.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    if words.next().is_some() || !is_state {
        return None;
    }
    Some(Told { state: state.to_owned(), left: time_left(time) })
}

/// `[days-]hours:minutes:seconds` without what is zero at its front, or a word.
fn time_left(word: &str) -> Option<Left> {
    if word == "UNLIMITED" {
        return Some(Left::Unlimited);
    }
    let (days, clock) = match word.split_once('-') {
        Some((days, clock)) => (number(days)?, clock),
        None => (0, word),
    };
    let parts: Vec<u64> = clock.split(':').map(number).collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match *parts.as_slice() {
        [hours, minutes, seconds] => (hours, minutes, seconds),
        [minutes, seconds] => (0, minutes, seconds),
        _ => return None,
    };
    let total = days.checked_mul(86_400)?.checked_add(hours.checked_mul(3600)?)?;
    let total = total.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)?;
    Some(Left::Time(Duration::from_secs(total)))
}

/// Digits and nothing else.
fn number(word: &str) -> Option<u64> {
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn left(time: &str) -> Option<Left> {
        parse(&format!("RUNNING {time}\n")).and_then(|told| told.left)
    }

    #[test]
    fn answers_of_squeue_are_understood() {
        let time = |seconds| Some(Left::Time(Duration::from_secs(seconds)));
        for (answer, seconds) in [
            ("1:00", time(60)),
            ("0:05", time(5)),
            ("59:59", time(3599)),
            ("2:00:01", time(7201)),
            ("1-00:00:00", time(86_400)),
            ("365-23:59:59", time(365 * 86_400 + 86_399)),
            ("UNLIMITED", Some(Left::Unlimited)),
            ("NOT_SET", None),
            ("INVALID", None),
            ("5", None),
            ("1:2:3:4", None),
            ("99999999999999999999-00:00:00", None),
            ("-1:00", None),
            ("+1:00", None),
        ] {
            assert_eq!(left(answer), seconds, "{answer:?}");
        }
        let told = parse("COMPLETING 0:00\n").unwrap();
        assert_eq!((told.state.as_str(), told.left), ("COMPLETING", time(0)));
        assert_eq!(parse("PENDING NOT_SET\n").unwrap().state, "PENDING");
    }

    #[test]
    fn what_is_not_about_one_job_is_no_answer() {
        let two = "RUNNING 1:00\nRUNNING 2:00\n";
        for answer in ["", "\n", "RUNNING", "RUNNING 1:00 x", two, "slurm: error"] {
            assert_eq!(parse(answer), None, "{answer:?}");
        }
    }

    #[test]
    fn time_goes_by_and_no_limit_stays_none() {
        let second = Duration::from_secs(1);
        assert_eq!(Left::of_end(1_796_056_980, 1_796_056_920).after(second), Left::Time(59 * second));
        assert_eq!(Left::of_end(5, 1_796_056_920).after(second), Left::Time(Duration::ZERO));
        assert_eq!(Left::Unlimited.after(second), Left::Unlimited);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(answer in ".{0,40}") {
            let _ = parse(&answer);
        }

        #[test]
        fn times_come_back(seconds in 0u64..100_000_000) {
            let (days, clock) = (seconds / 86_400, seconds % 86_400);
            let text = format!("{days}-{:02}:{:02}:{:02}", clock / 3600, clock / 60 % 60, clock % 60);
            prop_assert_eq!(left(&text), Some(Left::Time(Duration::from_secs(seconds))));
        }
    }
}

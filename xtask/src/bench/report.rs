//! All that was measured, as it is written to the file of `--json`, and what follows from it.

use anyhow::Result;
use serde::Serialize;

use super::case::Skipped;
use super::contender::Kind;
use super::machine::Machine;
use super::measure::{Measured, Outcome};
use super::stats::median;
use super::victim::{Interval, rate};

/// One run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// To repeat it.
    pub command: String,
    /// The day, as in 2026-11-30.
    pub date: String,
    pub machine: Machine,
    /// Who was compared, with their versions.
    pub versions: Vec<String>,
    /// Who was not, and why.
    pub missing: Vec<String>,
    pub skipped: Vec<Skipped>,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// As a file.
    ///
    /// # Errors
    /// None that is known.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Contenders that failed, a line each.
    pub fn failures(&self) -> Vec<String> {
        let all =
            self.outcomes.iter().flat_map(|outcome| outcome.tools.iter().map(move |one| (outcome, one)));
        let failed = all.filter_map(|(outcome, one)| Some((outcome, one.tool, one.failed.as_ref()?)));
        failed.map(|(outcome, tool, why)| format!("{}, {tool}: {why}", outcome.case.name)).collect()
    }
}

/// The middle of the checkpoints of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Middle {
    pub durable_us: u64,
    pub bytes_stored: u64,
    pub pages: Option<u64>,
    pub cpu_us: Option<u64>,
}

impl Middle {
    pub fn of(measured: &Measured, kind: Kind) -> Option<Self> {
        let all = || measured.checkpoints.iter().map(|one| &one.taken);
        let taken = || all().filter(move |taken| taken.kind == kind);
        Some(Self {
            durable_us: median(taken().map(|taken| taken.durable_us))?,
            bytes_stored: median(taken().map(|taken| taken.bytes_stored))?,
            pages: median(taken().filter_map(|taken| taken.pages)),
            cpu_us: median(taken().filter_map(|taken| taken.cpu_us)),
        })
    }
}

/// How much less a program does than one that is left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowdown {
    /// Between checkpoints: a part of one.
    pub between: Option<f64>,
    /// From the request for a checkpoint until it is durable, with what asking takes.
    pub during: Option<f64>,
    /// The time that a checkpoint costs the program, in microseconds.
    pub lost_us: Option<f64>,
}

impl Slowdown {
    /// Compared with `undisturbed` pages a second.
    pub fn of(measured: &Measured, undisturbed: f64) -> Self {
        let during: Vec<Interval> = measured.checkpoints.iter().map(|one| one.during).collect();
        let part = |intervals: &[Interval]| rate(intervals).map(|rate| 1.0 - rate / undisturbed);
        let time: u64 = during.iter().map(|one| one.ns).sum();
        let lost = part(&during).map(|part| part * time as f64 / 1e3 / during.len() as f64);
        Self { between: part(&measured.between), during: part(&during), lost_us: lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::contender::Taken;
    use crate::bench::measure::Checkpoint;

    fn checkpoint(kind: Kind, durable_us: u64, pages: Option<u64>, during: Interval) -> Checkpoint {
        let taken = Taken { kind, durable_us, told_us: None, bytes_stored: 10, pages, cpu_us: None };
        Checkpoint { taken, during }
    }

    const SECOND: Interval = Interval { ns: 1_000_000_000, sums: 100, written: 0, longest_ns: 0 };

    #[test]
    fn full_ones_and_deltas_are_kept_apart() {
        let checkpoints = vec![
            checkpoint(Kind::Full, 900, None, SECOND),
            checkpoint(Kind::Delta, 30, Some(7), SECOND),
            checkpoint(Kind::Delta, 10, Some(5), SECOND),
            checkpoint(Kind::Delta, 20, Some(9), SECOND),
        ];
        let measured = Measured { checkpoints, ..Measured::default() };
        let full = Middle { durable_us: 900, bytes_stored: 10, pages: None, cpu_us: None };
        assert_eq!(Middle::of(&measured, Kind::Full), Some(full));
        let delta = Middle { durable_us: 20, bytes_stored: 10, pages: Some(7), cpu_us: None };
        assert_eq!(Middle::of(&measured, Kind::Delta), Some(delta));
        assert_eq!(Middle::of(&Measured::default(), Kind::Full), None);
    }

    #[test]
    fn a_slowdown_is_what_was_not_done() {
        let half = Interval { ns: 500_000_000, sums: 25, ..SECOND };
        let measured = Measured {
            between: vec![SECOND, SECOND],
            checkpoints: vec![checkpoint(Kind::Full, 1, None, half)],
            ..Measured::default()
        };
        let slowdown = Slowdown::of(&measured, 100.0);
        assert_eq!((slowdown.between, slowdown.during), (Some(0.0), Some(0.5)));
        assert_eq!(slowdown.lost_us, Some(250_000.0));
        let nothing = Slowdown { between: None, during: None, lost_us: None };
        assert_eq!(Slowdown::of(&Measured::default(), 100.0), nothing);
    }
}

//! One case: round after round, in each of which all contenders come one after another, so that what changes on the machine
//! meanwhile meets all of them.
//!
//! ```text
//! round ─▶ the machine's limits ─▶ native ─▶ ckptbpf ─▶ criu ─▶ DMTCP        (the next round begins with the second)
//!                                             │
//!      a new program, its memory just filled ─┴─▶ [ between ─▶ checkpoint ] × n ─▶ between ─▶ its end
//! ```
//! One program at a time: each has the machine's memory to itself.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::case::Case;
use super::contender::{Contender, Native, Taken};
use super::format::time;
use super::limits::Limits;
use super::stage::Stage;
use super::stats::Spread;
use super::victim::Interval;
use super::{ckptbpf, criu, dmtcp};
use crate::cmd::step;

/// Who is compared.
#[derive(Debug, Clone)]
pub enum Tool {
    /// Nobody takes a checkpoint.
    Native,
    Ckptbpf,
    Criu,
    /// Whose programs are in this folder.
    Dmtcp(PathBuf),
}

impl Tool {
    pub fn name(&self) -> &'static str {
        match self {
            Tool::Native => "native",
            Tool::Ckptbpf => "ckptbpf",
            Tool::Criu => "criu",
            Tool::Dmtcp(_) => "dmtcp",
        }
    }

    fn start<'s>(&self, stage: &'s Stage, case: &Case) -> Result<Box<dyn Contender + 's>> {
        Ok(match self {
            Tool::Native => Box::new(Native::start(stage, case)?),
            Tool::Ckptbpf => Box::new(ckptbpf::Job::start(stage, case)?),
            Tool::Criu => Box::new(criu::Dumped::start(stage, case)?),
            Tool::Dmtcp(bin) => Box::new(dmtcp::Job::start(stage, bin, case)?),
        })
    }
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub rounds: usize,
    /// Checkpoints of ckptbpf in each, of which the first is a full one.
    pub ours: usize,
    /// Of each other.
    pub theirs: usize,
    /// Between two checkpoints.
    pub interval: Duration,
    /// Bytes of the file that tells the disk's speed, at most.
    pub disk: u64,
}

/// 35 checkpoints, 30 of them deltas.
pub const WHOLE: Extent =
    Extent { rounds: 5, ours: 7, theirs: 2, interval: Duration::from_secs(1), disk: 1 << 30 };
pub const QUICK: Extent =
    Extent { rounds: 2, ours: 4, theirs: 1, interval: Duration::from_millis(400), disk: 256 << 20 };

/// A checkpoint, and what the program tells of the time in which it was taken.
#[derive(Debug, Clone, Serialize)]
pub struct Checkpoint {
    #[serde(flatten)]
    pub taken: Taken,
    pub during: Interval,
}

/// What one contender came to.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    pub tool: &'static str,
    /// The time between two checkpoints, after the first one.
    pub between: Vec<Interval>,
    pub checkpoints: Vec<Checkpoint>,
    pub peak_kib: Option<u64>,
    /// Why it has fewer.
    pub failed: Option<String>,
}

/// What a case came to.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub case: Case,
    pub limits: Limits,
    pub tools: Vec<Measured>,
}

impl Outcome {
    pub fn of(&self, tool: &str) -> Option<&Measured> {
        self.tools.iter().find(|measured| measured.tool == tool)
    }
}

impl Measured {
    /// The longest times between two looks at the clock while checkpoints were taken, in microseconds.
    pub fn seen_us(&self) -> Option<Spread> {
        Spread::of(self.checkpoints.iter().map(|one| one.during.longest_ns / 1000))
    }
}

/// Measures a case. A contender that fails is told, and comes in no further round.
///
/// # Errors
/// The limits of the machine cannot be measured.
pub fn case(stage: &Stage, case: &Case, tools: &[Tool], extent: &Extent) -> Result<Outcome> {
    let tools_of = tools.iter().map(|tool| Measured { tool: tool.name(), ..Measured::default() });
    let mut outcome = Outcome { case: *case, limits: Limits::default(), tools: tools_of.collect() };
    for round in 0..extent.rounds {
        step(&format!("{} ({case}): round {} of {}", case.name, round + 1, extent.rounds));
        outcome.limits.measure(case, stage.folder(), extent.disk)?;
        for at in (0..tools.len()).map(|at| (at + round) % tools.len()) {
            let measured = &mut outcome.tools[at];
            if measured.failed.is_none() {
                let result = run(stage, case, &tools[at], extent, measured);
                measured.failed = result.err().map(|error| format!("{error:#}"));
                println!("{}", told(measured));
            }
        }
    }
    Ok(outcome)
}

fn run(stage: &Stage, case: &Case, tool: &Tool, extent: &Extent, measured: &mut Measured) -> Result<()> {
    let times = match tool {
        Tool::Native | Tool::Ckptbpf => extent.ours,
        Tool::Criu | Tool::Dmtcp(_) => extent.theirs,
    };
    let mut contender = tool.start(stage, case)?;
    for number in 0..=times {
        contender.victim().ask()?;
        thread::sleep(extent.interval);
        let between = contender.victim().ask()?;
        // Before its first checkpoint a program is as it was born.
        if number > 0 {
            measured.between.push(between);
        }
        if number < times
            && let Some(taken) = contender.checkpoint()?
        {
            let during = contender.victim().ask()?;
            measured.checkpoints.push(Checkpoint { taken, during });
            contender.forget()?;
        }
    }
    measured.peak_kib = measured.peak_kib.max(contender.peak_kib());
    Ok(())
}

/// A line for who looks on.
fn told(measured: &Measured) -> String {
    let tool = measured.tool;
    if let Some(why) = &measured.failed {
        return format!("{tool}: failed: {why}");
    }
    let seen = measured.seen_us().map(|seen| {
        format!(
            "{} checkpoints so far, seen {} (middle), {} (most)",
            seen.count,
            time(seen.p50 as f64),
            time(seen.max as f64)
        )
    });
    format!("{tool}: {}", seen.as_deref().unwrap_or("done"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_thirty_deltas_and_more_in_all_rounds() {
        const { assert!(WHOLE.rounds * (WHOLE.ours - 1) >= 30) };
        const { assert!(QUICK.rounds > 1 && QUICK.ours > 1 && QUICK.theirs > 0) };
    }
}

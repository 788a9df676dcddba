//! The program that is measured, and what it tells of how it was held up.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::case::Case;
use super::stage::{Room, Stage};
use crate::cmd::Held;

/// How long it may take to fill its memory.
const TO_FILL: Duration = Duration::from_secs(300);
const TO_ANSWER: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What it tells of the time since it was asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Interval {
    pub ns: u64,
    /// Pages that it has added up: its work.
    pub sums: u64,
    /// Pages that it has written to.
    pub written: u64,
    /// The longest time between two looks at the clock.
    pub longest_ns: u64,
}

impl Interval {
    fn parse(line: &str, number: usize) -> Option<Self> {
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let &[at, ns, sums, written, longest_ns] = fields.as_slice() else { return None };
        (at == number as u64).then_some(Self { ns, sums, written, longest_ns })
    }
}

/// Pages added up in a second.
pub fn rate(intervals: &[Interval]) -> Option<f64> {
    let (sums, ns) = intervals.iter().fold((0, 0), |(sums, ns), one| (sums + one.sums, ns + one.ns));
    (ns > 0).then(|| sums as f64 * 1e9 / ns as f64)
}

/// The running program; it ends with this.
pub struct Victim {
    /// What was started: itself, or who supervises it.
    child: Held,
    program: i32,
    said: PathBuf,
    errors: PathBuf,
    lines: usize,
}

impl Victim {
    /// Starts it by a command that runs what is appended to it, and waits until its memory is full.
    ///
    /// # Errors
    /// It cannot be started, or ends.
    pub fn start(command: &mut Command, stage: &Stage, case: &Case, room: &Room) -> Result<Self> {
        let (said, errors) = (room.path().join("said"), room.path().join("errors"));
        command.arg(&stage.victim).args(case.arguments());
        command.stdout(File::create(&said)?).stderr(File::create(&errors)?);
        let child = Held(command.spawn().context("starting the program")?);
        let program = i32::try_from(child.0.id())?;
        let mut victim = Self { child, program, said, errors, lines: 0 };
        victim.next_line(TO_FILL)?;
        Ok(victim)
    }

    /// Process id of what was started.
    pub fn started(&self) -> u32 {
        self.child.0.id()
    }

    /// Process id of the program.
    pub fn program(&self) -> i32 {
        self.program
    }

    /// What was started is its supervisor.
    pub fn set_program(&mut self, program: i32) {
        self.program = program;
    }

    /// What it tells of the time since it was asked before.
    ///
    /// # Errors
    /// It has ended, or does not answer.
    pub fn ask(&mut self) -> Result<Interval> {
        // Its process id may be somebody else's after its end.
        self.require_alive()?;
        kill(Pid::from_raw(self.program), Signal::SIGUSR1).context("asking the program")?;
        self.next_line(TO_ANSWER)
    }

    fn require_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.0.try_wait()? {
            bail!("it has ended ({status}): {}", self.trouble());
        }
        Ok(())
    }

    fn next_line(&mut self, patience: Duration) -> Result<Interval> {
        let until = Instant::now() + patience;
        loop {
            let text = fs::read_to_string(&self.said).with_context(|| self.said.display().to_string())?;
            if let Some(line) = whole_line(&text, self.lines) {
                let told = Interval::parse(line, self.lines);
                self.lines += 1;
                return told.with_context(|| format!("the program says {line:?}"));
            }
            self.require_alive()?;
            ensure!(Instant::now() < until, "no answer in {} s: {}", patience.as_secs(), self.trouble());
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// The last line on its standard error.
    fn trouble(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        text.lines().next_back().unwrap_or("nothing was said").to_owned()
    }
}

/// Line `number` from 0, without its end, once that is there.
fn whole_line(text: &str, number: usize) -> Option<&str> {
    text.split_inclusive('\n').nth(number)?.strip_suffix('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_once_it_is_whole() {
        let text = "0 5 1 0 2\n1 900 70 3 44\n2 90";
        assert_eq!(whole_line(text, 1), Some("1 900 70 3 44"));
        assert_eq!((whole_line(text, 2), whole_line(text, 3)), (None, None));
    }

    #[test]
    fn a_line_is_five_numbers_of_which_the_first_is_its_own() {
        let told = Interval { ns: 900, sums: 70, written: 3, longest_ns: 44 };
        assert_eq!(Interval::parse("1 900 70 3 44", 1), Some(told));
        for line in ["2 900 70 3 44", "1 900 70 3", "1 900 70 3 44 5", "1 900 x 3 44", ""] {
            assert_eq!(Interval::parse(line, 1), None, "{line}");
        }
    }

    #[test]
    fn a_rate_is_that_of_all_time_together() {
        let interval = |ns, sums| Interval { ns, sums, written: 0, longest_ns: 0 };
        assert_eq!(rate(&[interval(1_000_000_000, 30), interval(500_000_000, 0)]), Some(20.0));
        assert_eq!(rate(&[]), None);
    }
}

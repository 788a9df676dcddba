//! One virtual machine, from its start to its verdict.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::machine::{LONGEST, Machine, Next};

/// A machine that says nothing for so long says nothing any more: its first process ends tests after ten minutes.
pub const SILENCE: Duration = Duration::from_secs(660);

/// What became of the tests, and of the machine.
pub struct Results {
    pub tests: Vec<(String, Outcome)>,
    /// Why the machine counts as failed, whatever its tests say.
    pub wrong: Option<String>,
    pub took: Duration,
}

impl Results {
    /// Whether there were tests, and nothing but success.
    pub fn are_good(&self) -> bool {
        let passed = |(_, outcome): &(String, Outcome)| *outcome == Outcome::Passed;
        self.wrong.is_none() && !self.tests.is_empty() && self.tests.iter().all(passed)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// Runs a machine to its end and writes down what it prints.
pub fn run(name: &str, machine: &Machine, console: &Path) -> Result<Results> {
    let begin = Instant::now();
    let mut running = machine.start(console)?;
    let mut report = Report::default();
    loop {
        match running.next(SILENCE)? {
            Next::Line(line) => {
                if let Some(shown) = report.see(&line) {
                    println!("{name:>8}: {shown}");
                }
            }
            Next::End => break,
            Next::Silence => {
                report.wrong = Some(format!("has said nothing for {} s", SILENCE.as_secs()));
                break;
            }
            Next::Late => {
                report.wrong = Some(format!("has not ended within {} s", LONGEST.as_secs()));
                break;
            }
        }
    }
    if report.wrong.is_none() {
        let status = running.status()?;
        report.wrong = match (status.code(), report.has_verdict) {
            (Some(1), true) => None,
            (Some(code), true) if code % 2 == 1 && report.has_failed() => None,
            (Some(code), _) if code % 2 == 1 => Some(format!("has ended with {}", code / 2)),
            _ => Some("has ended without a verdict".into()),
        };
    }
    if let Some(wrong) = &report.wrong {
        println!("{name:>8}: {wrong}");
    }
    Ok(Results { tests: report.tests, wrong: report.wrong, took: begin.elapsed() })
}

#[derive(Default)]
pub struct Report {
    tests: Vec<(String, Outcome)>,
    pub wrong: Option<String>,
    /// Whether its first process runs: what the kernel warns of before that nothing of ours has made.
    has_begun: bool,
    has_verdict: bool,
}

impl Report {
    /// Takes a line; what to show of it.
    pub fn see(&mut self, line: &str) -> Option<String> {
        if is_grave(line) || (self.has_begun && is_warning(line)) {
            self.wrong = Some(format!("the kernel says: {}", line.trim()));
            return None;
        }
        let (kind, rest) = line.strip_prefix("VM-TEST ")?.split_once(' ')?;
        let outcome = match kind {
            "kernel" => {
                self.has_begun = true;
                return Some(rest.to_owned());
            }
            "error" => {
                self.wrong = Some(rest.to_owned());
                return None;
            }
            "verdict" => {
                self.has_verdict = true;
                return Some(rest.to_owned());
            }
            "ok" => Outcome::Passed,
            "failed" => Outcome::Failed,
            "skipped" => Outcome::Skipped(rest.split_once(": ").map_or(rest, |(_, why)| why).to_owned()),
            _ => return None,
        };
        // `BINARY FUNCTION`, and how long it took.
        let name: Vec<&str> = rest.splitn(3, ' ').take(2).collect();
        self.tests.push((name.join(" "), outcome));
        Some(format!("{kind} {rest}"))
    }

    pub fn has_failed(&self) -> bool {
        self.tests.iter().any(|(_, outcome)| *outcome == Outcome::Failed)
    }
}

/// What a kernel says that cannot go on, or not as it should.
fn is_grave(line: &str) -> bool {
    ["Kernel panic", "BUG:", "Oops:"].iter().any(|word| line.contains(word))
}

/// What WARN(9) prints (kernel/panic.c, `__warn`): the processor stands before the place, and behind it in newer kernels.
fn is_warning(line: &str) -> bool {
    let said = line.split_once("WARNING: ").map(|(_, said)| said);
    said.is_some_and(|said| said.starts_with("CPU: ") || said.contains(", CPU#"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_the_kernel_are_seen_once_something_runs() {
        const OLD: &str = "[   21.1] WARNING: CPU: 1 PID: 77 at mm/memory.c:120 zap_pte_range+0x1/0x2";
        const NEW: &str = "[   21.1] WARNING: mm/memory.c:120 at zap_pte_range+0x1/0x2, CPU#1: count/77";
        for line in [OLD, NEW] {
            let mut report = Report::default();
            report.see(line);
            assert_eq!(report.wrong, None, "nothing ran yet");
            report.see("VM-TEST kernel 6.12.9 tests 1");
            report.see("ckptbpf says: WARNING: not of the kernel");
            assert_eq!(report.wrong, None);
            report.see(line);
            assert!(report.wrong.is_some(), "{line}");
        }
        let mut report = Report::default();
        report.see("[   69.4] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI");
        assert!(report.wrong.is_some());
    }

    #[test]
    fn lines_of_the_machine_are_understood() {
        let mut report = Report::default();
        for line in [
            "VM-TEST began count a",
            "VM-TEST ok count a 1.0 s",
            "noise",
            "VM-TEST failed dirty b::c 2.0 s: exit status 101",
        ] {
            report.see(line);
        }
        report.see("VM-TEST skipped lazy d 0.1 s: no such thing: here");
        let outcome = |n: usize| report.tests[n].1.clone();
        assert_eq!(report.tests[1].0, "dirty b::c");
        assert_eq!((outcome(0), outcome(1)), (Outcome::Passed, Outcome::Failed));
        assert_eq!(outcome(2), Outcome::Skipped("no such thing: here".into()));
        assert!(report.has_failed() && !report.has_verdict);
        report.see("VM-TEST verdict 1 passed, 1 failed, 1 skipped");
        assert!(report.has_verdict && report.wrong.is_none());
        report.see("[    1.0] Kernel panic - not syncing");
        assert!(report.wrong.is_some());
    }
}

//! How many tests passed, failed and were skipped, as both test runners say it.

use std::collections::BTreeMap;
use std::fmt;

/// What a run of the tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    /// Reasons by name: a test says itself that it cannot run here, and then counts as skipped, not as passed.
    pub skipped: BTreeMap<String, String>,
    /// How many runs of tests were skipped.
    pub skips: u32,
    /// Names of the tests that failed, each as often as it did.
    pub failures: Vec<String>,
}

impl Counts {
    /// Takes one line of `cargo nextest run` or `cargo test`.
    pub fn see(&mut self, line: &str) {
        // What nextest shows of a failed test is indented, and counted in its summary.
        let is_own = line.starts_with("test ");
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Summary [") {
            let number = |what: &str| before(rest, what);
            self.passed += number(" passed");
            self.failed += number(" failed") + number(" timed out") + number(" exec failed");
        } else if let Some(rest) = line.strip_prefix("test result:").filter(|_| is_own) {
            self.passed += before(rest, " passed");
            self.failed += before(rest, " failed");
        } else if let Some(name) = failed_name(line).filter(|_| is_own || !line.starts_with("test "))
            && !self.failures.contains(&name)
        {
            self.failures.push(name);
        }
    }

    /// Takes what the tests left in the skip collector: lines `SKIPPED name: reason`.
    pub fn see_skips(&mut self, collected: &str) {
        for line in collected.lines() {
            if let Some((name, reason)) = line.strip_prefix("SKIPPED ").and_then(|rest| rest.split_once(": "))
                && self.skipped.insert(name.into(), reason.into()).is_none()
            {
                self.skips += 1;
                self.passed = self.passed.saturating_sub(1);
            }
        }
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips += other.skips;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
    }

    /// How often each test failed.
    pub fn failures_by_name(&self) -> BTreeMap<&str, u32> {
        let mut times = BTreeMap::new();
        for name in &self.failures {
            *times.entry(name.as_str()).or_default() += 1;
        }
        times
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skips)
    }
}

/// nextest: `FAIL [   0.1s] (1/2) crate::file name`, also TIMEOUT and SIGABRT; libtest: `test name ... FAILED`.
fn failed_name(line: &str) -> Option<String> {
    if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
        return Some(name.into());
    }
    let rest = ["FAIL [", "TIMEOUT [", "SIGABRT [", "SIGKILL [", "SIGSEGV ["]
        .iter()
        .find_map(|word| line.strip_prefix(word))?;
    let name = rest.split_once("] ")?.1.trim_start();
    Some(name.split_once(") ").map_or(name, |(_, name)| name).to_owned())
}

/// The number that stands right before `what`.
fn before(text: &str, what: &str) -> u32 {
    let Some(end) = text.find(what) else { return 0 };
    let word = text[..end].rsplit(|c: char| !c.is_ascii_digit()).next();
    word.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.see(line));
        counts
    }

    #[test]
    fn nextest_summary() {
        let seen = counts(&[
            "        PASS [   0.005s] ( 1/17) ckpt-tests sandbox::tests::a",
            "        FAIL [   0.079s] (11/15) ckpt-tests::sandbox b",
            "     Summary [   6.352s] 17/19 tests run: 14 passed (1 slow), 2 failed, 1 timed out, 3 skipped",
            "        FAIL [   0.079s] (11/15) ckpt-tests::sandbox b",
        ]);
        assert_eq!((seen.passed, seen.failed), (14, 3));
        assert_eq!(seen.failures, ["ckpt-tests::sandbox b"]);
    }

    #[test]
    fn libtest_results_add_up() {
        let seen = counts(&[
            "test image::a ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        ]);
        assert_eq!((seen.passed, seen.failed), (8, 1));
        assert_eq!(seen.failures, ["image::a"]);
    }

    #[test]
    fn a_skip_is_not_a_pass() {
        let mut seen = counts(&["test result: ok. 5 passed; 0 failed; 0 ignored"]);
        seen.see_skips("SKIPPED soft_dirty: this kernel has no soft-dirty\nSKIPPED soft_dirty: said twice\n");
        assert_eq!(seen.to_string(), "4 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn rounds_add_up() {
        let mut total = Counts::default();
        for _ in 0..3 {
            let mut round = counts(&["test image::a ... FAILED", "test result: FAILED. 5 passed; 1 failed"]);
            round.see_skips("SKIPPED soft_dirty: this kernel has no soft-dirty\n");
            total.add(round);
        }
        assert_eq!(total.to_string(), "12 passed, 3 failed, 3 skipped");
        assert_eq!(total.failures_by_name(), BTreeMap::from([("image::a", 3)]));
        assert_eq!(total.skipped.len(), 1);
    }
}

//! What became of each test of a run, and how each restarted its jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The last run of all tests.
const LAST: &str = "target/results.json";

/// Tests are called `BINARY PATH::NAME`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    /// Reasons.
    skipped: BTreeMap<String, String>,
    restarts: BTreeMap<String, Restarts>,
    /// Whose results come, of cargo's own runner.
    #[serde(skip)]
    binary: String,
}

/// Restarts of jobs by one test.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    pub eager: u32,
    pub lazy: u32,
    /// Most of one job.
    pub most: u32,
}

impl Restarts {
    /// Those of another test too.
    pub fn add(&mut self, other: Self) {
        self.eager += other.eager;
        self.lazy += other.lazy;
        self.most = self.most.max(other.most);
    }
}

/// What is known of the tests that a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed(Restarts),
    /// Why, as the test says.
    Skipped(String),
    /// One has failed.
    Failed,
    /// None of that name has run.
    Missing,
}

impl Results {
    /// Takes one line of `cargo nextest run` or `cargo test`.
    pub fn see(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ok")) {
            self.passed.insert(format!("{} {name}", self.binary));
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed.insert(format!("{} {name}", self.binary));
        }
        let line = line.trim();
        if let Some(path) =
            line.strip_prefix("Running ").and_then(|rest| rest.split_once(" (")?.1.strip_suffix(')'))
        {
            let file = path.rsplit('/').next().unwrap_or_default();
            self.binary = file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned();
        } else if let Some(name) = of_nextest(line, &["PASS ["]) {
            self.passed.insert(name);
        } else if let Some(name) =
            of_nextest(line, &["FAIL [", "TIMEOUT [", "SIGABRT [", "SIGKILL [", "SIGSEGV ["])
        {
            self.failed.insert(name);
        }
    }

    /// Takes the lines `SKIPPED-TEST BINARY PATH::NAME: reason` of the skip collector: to the runner they have passed.
    pub fn see_skips(&mut self, collected: &str) {
        for line in collected.lines() {
            if let Some((name, reason)) = line.strip_prefix("SKIPPED-TEST ").and_then(|l| l.split_once(": "))
            {
                self.passed.remove(name);
                self.skipped.insert(name.to_owned(), reason.to_owned());
            }
        }
    }

    /// Takes the lines `NAME⇥MODE⇥NUMBER` of the collector of restarts.
    pub fn see_restarts(&mut self, collected: &str) {
        for line in collected.lines() {
            let mut fields = line.split('\t');
            let (Some(name), Some(mode), Some(number)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let (eager, most) = (u32::from(mode == "eager"), number.parse().unwrap_or(0));
            self.restarts.entry(name.to_owned()).or_default().add(Restarts { eager, lazy: 1 - eager, most });
        }
    }

    /// Of a function, whatever binary it is in, or of all tests of a file or folder below `tests/tests`.
    pub fn of(&self, name: &str) -> Outcome {
        if self.failed.iter().any(|test| is_meant(name, test)) {
            return Outcome::Failed;
        }
        let passed: Vec<&String> = self.passed.iter().filter(|test| is_meant(name, test)).collect();
        if passed.is_empty() {
            let skipped = self.skipped.iter().find(|(test, _)| is_meant(name, test));
            return skipped.map_or(Outcome::Missing, |(_, reason)| Outcome::Skipped(reason.clone()));
        }
        let mut restarts = Restarts::default();
        passed.iter().filter_map(|test| self.restarts.get(*test)).for_each(|of| restarts.add(*of));
        Outcome::Passed(restarts)
    }

    /// A test that restarts one job twice or more, and all of its jobs in the same mode.
    pub fn in_one_mode(&self, name: &str) -> Option<&str> {
        let is_one = |of: &Restarts| of.most > 1 && (of.eager == 0 || of.lazy == 0);
        let meant = self.restarts.iter().filter(|(test, of)| is_meant(name, test) && is_one(of));
        meant.map(|(test, _)| test.rsplit([' ', ':']).next().unwrap_or(test)).next()
    }

    /// Of the last run of all tests.
    ///
    /// # Errors
    /// There was none, or its file cannot be read.
    pub fn last() -> Result<Self> {
        let text =
            fs::read_to_string(LAST).with_context(|| format!("{LAST}: `cargo xtask test` makes it"))?;
        serde_json::from_str(&text).with_context(|| format!("reading {LAST}"))
    }

    /// Keeps them as those of the last run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self) -> Result<()> {
        fs::write(Path::new(LAST), serde_json::to_string(self)?).with_context(|| format!("writing {LAST}"))
    }
}

/// Whether `name`, a function or a file, stands for a test `BINARY PATH::NAME`.
fn is_meant(name: &str, test: &str) -> bool {
    let file = name.strip_prefix("tests/tests/").map(|file| file.trim_end_matches(".rs"));
    let (binary, path) = test.split_once(' ').unwrap_or_default();
    file.map_or_else(|| path.rsplit("::").next() == Some(name), |file| binary == file)
}

/// `PASS [   0.1s] (1/2) crate::binary path::name`.
fn of_nextest(line: &str, words: &[&str]) -> Option<String> {
    let rest = words.iter().find_map(|word| line.strip_prefix(word))?.split_once("] ")?.1.trim_start();
    let (id, path) = rest.split_once(") ").map_or(rest, |(_, name)| name).split_once(' ')?;
    Some(format!("{} {path}", id.rsplit("::").next().unwrap_or(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(lines: &[&str]) -> Results {
        let mut results = Results::default();
        lines.iter().for_each(|line| results.see(line));
        results
    }

    const NEXTEST: &[&str] = &[
        "        PASS [   0.005s] ( 1/17) ckpt-tests::dirty private::a_row",
        "        FAIL [   0.079s] (11/15) ckpt-tests::sandbox b",
        "     TIMEOUT [   0.079s] ckpt-tests::sandbox c",
    ];
    const LIBTEST: &[&str] = &[
        "     Running tests/dirty/main.rs (target/release/deps/dirty-0123456789abcdef)",
        "test private::a_row ... ok",
        "     Running tests/sandbox.rs (target/release/deps/sandbox-0123456789abcdef)",
        "test b ... FAILED",
        "test c ... FAILED",
    ];

    #[test]
    fn both_runners_say_what_became_of_a_test() {
        for lines in [NEXTEST, LIBTEST] {
            let results = results(lines);
            assert_eq!(results.of("a_row"), Outcome::Passed(Restarts::default()));
            assert_eq!(results.of("tests/tests/dirty"), Outcome::Passed(Restarts::default()));
            for failed in ["b", "c", "tests/tests/sandbox.rs"] {
                assert_eq!(results.of(failed), Outcome::Failed, "{failed}");
            }
            assert_eq!(results.of("row"), Outcome::Missing);
        }
    }

    #[test]
    fn restarts_and_skips_are_those_of_the_test() {
        let mut results = results(NEXTEST);
        results.see_restarts(
            "dirty private::a_row\teager\t1\ndirty private::a_row\tlazy\t2\nsandbox b\tlazy\t1\n",
        );
        assert_eq!(results.of("a_row"), Outcome::Passed(Restarts { eager: 1, lazy: 1, most: 2 }));
        results.see_skips("SKIPPED row: no such kernel\nSKIPPED-TEST dirty private::a_row: no such kernel\n");
        assert_eq!(results.of("a_row"), Outcome::Skipped("no such kernel".into()));
    }
}

//! Kernels and tests, and what became of each.

use std::collections::BTreeMap;
use std::fmt;

use super::fetch::Fetched;
use super::guest::{Outcome, Results};
use super::plan::Plan;

pub struct Table {
    columns: Vec<Column>,
}

/// The closing line.
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Counts {
    /// One more.
    pub fn add(&mut self, passed: bool) {
        if passed { self.passed += 1 } else { self.failed += 1 }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// One machine.
pub struct Column {
    kernel: String,
    version: String,
    /// In the order of the plan.
    names: Vec<String>,
    cells: BTreeMap<String, Outcome>,
    wrong: Option<String>,
    /// What was wanted of this kernel and cannot be had.
    wanting: Option<String>,
    seconds: u64,
}

impl Column {
    pub fn new(kernel: &str, fetched: &Fetched, plan: &Plan, results: Results) -> Self {
        let mut cells: BTreeMap<String, Outcome> = results.tests.into_iter().collect();
        cells.extend(plan.skipped.iter().map(|(name, why)| (name.clone(), Outcome::Skipped(why.clone()))));
        Self {
            kernel: kernel.into(),
            version: fetched.version.clone(),
            names: plan.names().into_iter().map(str::to_owned).collect(),
            cells,
            wrong: results.wrong,
            wanting: fetched.wanting.clone(),
            seconds: results.took.as_secs(),
        }
    }

    /// A test that was to run and of which nothing was heard has failed.
    fn cell(&self, name: &str) -> Option<&Outcome> {
        self.names.iter().any(|own| own == name).then(|| self.cells.get(name).unwrap_or(&Outcome::Failed))
    }

    fn count(&self, is_it: impl Fn(&Outcome) -> bool) -> usize {
        self.names.iter().filter_map(|name| self.cell(name)).filter(|outcome| is_it(outcome)).count()
    }

    pub fn has_failed(&self) -> bool {
        self.wrong.is_some() || self.count(|outcome| *outcome == Outcome::Failed) > 0
    }
}

impl Table {
    pub fn new(columns: Vec<Column>) -> Self {
        Self { columns }
    }

    pub fn counts(&self) -> Counts {
        let sum = |is_it: fn(&Outcome) -> bool| {
            self.columns.iter().map(|column| column.count(is_it)).sum::<usize>()
        };
        // What went wrong with a machine as a whole is a failure beside those of its tests.
        let machines = self.columns.iter().filter(|column| column.wrong.is_some()).count();
        let wanting = self.columns.iter().filter(|column| column.wanting.is_some()).count();
        Counts {
            passed: sum(|outcome| *outcome == Outcome::Passed),
            failed: sum(|outcome| *outcome == Outcome::Failed) + machines,
            skipped: sum(|outcome| matches!(outcome, Outcome::Skipped(_))) + wanting,
        }
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.columns.iter().flat_map(|column| &column.names) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names();
        let first = names.iter().map(|name| name.len()).max().unwrap_or(0);
        write!(f, "{:first$}", "test")?;
        for column in &self.columns {
            write!(f, "  {:>8}", column.kernel)?;
        }
        for name in &names {
            write!(f, "\n{name:first$}")?;
            for column in &self.columns {
                let cell = match column.cell(name) {
                    Some(Outcome::Passed) => "ok",
                    Some(Outcome::Failed) => "FAILED",
                    Some(Outcome::Skipped(_)) => "skipped",
                    None => "",
                };
                write!(f, "  {cell:>8}")?;
            }
        }
        writeln!(f)?;
        for column in &self.columns {
            write!(f, "\n{}: Linux {}, {} s", column.kernel, column.version, column.seconds)?;
            if let Some(wrong) = &column.wrong {
                write!(f, "; FAILED: {wrong}")?;
            }
            if let Some(wanting) = &column.wanting {
                write!(f, "\n  skipped: {wanting}")?;
            }
            for name in &column.names {
                if let Some(Outcome::Skipped(why)) = column.cell(name) {
                    write!(f, "\n  skipped: {name}: {why}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_test_of_which_nothing_was_heard_has_failed() {
        let plan = Plan { skipped: vec![("b".into(), "no scan".into())], ..Plan::default() };
        let results = |wrong: Option<&str>| Results {
            tests: vec![("a".into(), Outcome::Passed)],
            wrong: wrong.map(str::to_owned),
            took: Duration::ZERO,
        };
        let fetched = |version: &str, wanting: Option<&str>| Fetched {
            version: version.into(),
            vmlinux: PathBuf::new(),
            modules: PathBuf::new(),
            wanting: wanting.map(str::to_owned),
        };
        let mut column = Column::new("6.1", &fetched("6.1.0-1", None), &plan, results(None));
        assert!(!column.has_failed());
        column.names.push("a".into());
        column.names.push("silent".into());
        let newest = fetched("6.19.1", Some("Linux 7 or newer: the archive has none"));
        let newest = Column::new("newest", &newest, &plan, results(Some("has panicked")));
        let table = Table::new(vec![column, newest]);
        assert!(table.columns.iter().all(Column::has_failed));
        assert_eq!(table.counts().to_string(), "1 passed, 2 failed, 3 skipped");
        let shown = table.to_string();
        let said = [
            "silent    FAILED",
            "skipped: b: no scan",
            "\n  skipped: Linux 7 or newer: the archive has none",
        ];
        assert!(said.iter().all(|words| shown.contains(words)), "{shown}");
    }
}

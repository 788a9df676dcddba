//! `cargo xtask support`: the README's support table, made from docs/support.toml and what the last run of all tests has
//! shown.
//!
//! A state is *saved* only if each of its tests has passed, and they have restarted a job eagerly and lazily, and one of
//! them twice; *refused* only if the tests that see the refusal have passed. Whatever is not so stands in the table as it
//! is, and `cargo xtask test` fails.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::results::{Outcome, Restarts, Results};

const ROWS: &str = "docs/support.toml";
const README: &str = "README.md";
const HEADING: &str = "| state | checkpoint, eager restart | lazy restart | test |\n|---|---|---|---|\n";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    row: Vec<Row>,
}

/// One kind of state.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    state: String,
    /// What the table says of checkpoint and eager restart: begins with *yes* if it is saved, with *refused* if not.
    eager: String,
    /// The same of a lazy restart.
    #[serde(default)]
    lazy: String,
    /// Functions, or files and folders of tests. A row without one says why there is none.
    tests: Vec<String>,
}

/// Writes the table.
///
/// # Errors
/// No run of all tests, or a file cannot be read or written.
pub fn run() -> Result<()> {
    let readme = fs::read_to_string(README).context(README)?;
    fs::write(README, replaced(&readme, &generated(&Results::last()?)?)?).context(README)
}

/// Whether the README's table is the one that `results` make.
///
/// # Errors
/// It is not: names the rows.
pub fn check(results: &Results) -> Result<()> {
    let readme = fs::read_to_string(README).context(README)?;
    let table = generated(results)?;
    let differing: Vec<&str> = table.lines().filter(|row| !readme.lines().any(|line| line == *row)).collect();
    for row in &differing {
        println!("support: this is what the tests have shown, and not in {README}: {row}");
    }
    if !differing.is_empty() || replaced(&readme, &table)? != readme {
        bail!("the support table is not what the tests have shown: `cargo xtask support` writes it");
    }
    println!("support: {} rows are what the tests have shown", table.lines().count() - 2);
    Ok(())
}

fn table() -> Result<Table> {
    toml::from_str(&fs::read_to_string(ROWS).context(ROWS)?).with_context(|| format!("reading {ROWS}"))
}

fn generated(results: &Results) -> Result<String> {
    Ok(HEADING.to_owned() + &table()?.row.iter().map(|row| line(row, results)).collect::<String>())
}

fn line(row: &Row, results: &Results) -> String {
    let names: Vec<String> = row.tests.iter().map(|test| format!("`{test}`")).collect();
    let (eager, lazy) = match verdict(row, results) {
        Ok(()) => (row.eager.as_str(), row.lazy.as_str()),
        Err(ref why) => (&*format!("**{why}**"), ""),
    };
    let cell = |text: &str| if text.is_empty() { " ".to_owned() } else { format!(" {text} ") };
    let cells = [&row.state, eager, lazy, &names.join(", ")].map(cell).join("|");
    format!("|{cells}|\n")
}

/// What `results`, which need not be those of all tests, have shown to be otherwise, a line each.
///
/// # Errors
/// The rows cannot be read.
pub fn contradicted(results: &Results) -> Result<Vec<String>> {
    let rows = table()?.row.into_iter().map(|mut row| {
        row.tests.retain(|test| results.of(test) != Outcome::Missing);
        row
    });
    let tried = rows.filter(|row| !row.tests.is_empty());
    Ok(tried.filter_map(|row| Some(format!("{}: {}", row.state, verdict(&row, results).err()?))).collect())
}

/// Whether the tests have shown what the row says; otherwise what they have.
fn verdict(row: &Row, results: &Results) -> Result<(), String> {
    let mut restarts = Restarts::default();
    for test in &row.tests {
        match results.of(test) {
            Outcome::Passed(of) => restarts.add(of),
            // Another machine has, or has not, what this test needs; the table is that of all of them.
            Outcome::Skipped(_) => {}
            Outcome::Failed => return Err(format!("no: `{test}` fails")),
            Outcome::Missing => return Err(format!("not known: `{test}` has not run")),
        }
    }
    let is_saved = |cell: &str| cell.starts_with("yes");
    let (eager, lazy) = (is_saved(&row.eager), is_saved(&row.lazy));
    let is_tried = row.tests.iter().any(|test| matches!(results.of(test), Outcome::Passed(_)));
    if (!eager && !lazy) || (!is_tried && !row.tests.is_empty()) || row.eager.contains("was tried") {
        return Ok(());
    }
    let one_mode = row.tests.iter().find_map(|test| results.in_one_mode(test)).filter(|_| eager && lazy);
    if let Some(test) = one_mode {
        return Err(format!("not known: `{test}` restarts it in one mode only"));
    }
    match restarts {
        _ if row.tests.is_empty() => Err("not known: it has no test".into()),
        Restarts { eager: 0, .. } if eager => Err("not known: no test restarts it eagerly".into()),
        Restarts { lazy: 0, .. } if lazy => Err("not known: no test restarts it lazily".into()),
        Restarts { most: 0 | 1, .. } => Err("not known: no test restarts it twice".into()),
        _ => Ok(()),
    }
}

/// `readme` with `table` in the place of its own.
fn replaced(readme: &str, table: &str) -> Result<String> {
    let heading = HEADING.lines().next().unwrap_or_default();
    let begin = readme.find(heading).with_context(|| format!("{README} has no support table"))?;
    let rows = readme[begin..].split_inclusive('\n').take_while(|line| line.starts_with('|'));
    let end = begin + rows.map(str::len).sum::<usize>();
    Ok(format!("{}{table}{}", &readme[..begin], &readme[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(eager: &str, lazy: &str, tests: &[&str]) -> Row {
        let tests = tests.iter().map(|&test| test.to_owned()).collect();
        Row { state: "pipes".into(), eager: eager.into(), lazy: lazy.into(), tests }
    }

    fn results(restarts: &str) -> Results {
        let mut results = Results::default();
        results.see("        PASS [   0.005s] ( 1/17) ckpt-tests::pipes good");
        results.see("        PASS [   0.005s] ( 1/17) ckpt-tests::pipes without");
        results.see("        FAIL [   0.005s] ( 1/17) ckpt-tests::pipes bad");
        results.see_restarts(restarts);
        results
    }

    const BOTH_TWICE: &str = "pipes good\teager\t1\npipes good\tlazy\t2\n";

    #[test]
    fn saved_is_what_was_restarted_in_both_modes_and_twice() {
        let both = row("yes; mostly", "yes", &["good", "without"]);
        assert_eq!(line(&both, &results(BOTH_TWICE)), "| pipes | yes; mostly | yes | `good`, `without` |\n");
        for (restarts, why) in [
            ("", "no test restarts it eagerly"),
            ("pipes good\teager\t1\n", "no test restarts it lazily"),
            ("pipes good\teager\t1\npipes good\teager\t2\n", "`good` restarts it in one mode only"),
            (
                "pipes good\teager\t1\npipes good\tlazy\t2\npipes without\tlazy\t1\npipes without\tlazy\t2\n",
                "`without` restarts it in one mode only",
            ),
            ("pipes good\teager\t1\npipes good\tlazy\t1\n", "no test restarts it twice"),
        ] {
            let line = line(&both, &results(restarts));
            assert!(line.starts_with(&format!("| pipes | **not known: {why}** | |")), "{line}");
        }
        assert_eq!(verdict(&row("yes", "yes", &[]), &results("")), Err("not known: it has no test".into()));
    }

    #[test]
    fn a_test_that_fails_or_has_not_run_is_in_the_table() {
        for (test, why) in [("bad", "no: `bad` fails"), ("gone", "not known: `gone` has not run")] {
            for cell in ["yes", "refused"] {
                assert_eq!(
                    verdict(&row(cell, "", &["good", test]), &results(BOTH_TWICE)),
                    Err(why.to_owned())
                );
            }
        }
        assert_eq!(verdict(&row("refused", "", &["without"]), &results("")), Ok(()));
    }

    #[test]
    fn only_the_table_is_replaced() {
        let readme = format!("before\n\n{HEADING}| old | yes | yes | `x` |\n\nafter\n");
        let table = format!("{HEADING}| new | yes | yes | `y` |\n");
        assert_eq!(replaced(&readme, &table).unwrap(), format!("before\n\n{table}\nafter\n"));
        assert!(replaced("no table", &table).is_err());
    }
}

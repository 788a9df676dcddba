//! SPECIFICATION.md names a test or benchmark for each promise, README.md for each state that is saved, and they exist.

use super::Source;
use super::code::{code, has_word};

/// Lines `NUMBER: …` for rows of its tables whose last column names nothing, or what is not there.
pub fn broken(specification: &Source, sources: &[Source]) -> Vec<String> {
    let rows = specification.text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    let mut found = Vec::new();
    for (i, line) in rows {
        let column = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        // The heading and the line below it.
        if column.contains("---") || column.trim().starts_with("test") {
            continue;
        }
        let names: Vec<&str> = column.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            found.push(format!("{}: a promise without a test or benchmark", i + 1));
        }
        let missing = names.into_iter().filter(|name| !exists(name, sources));
        found.extend(missing.map(|name| format!("{}: there is no test or benchmark {name}", i + 1)));
    }
    found
}

/// Lines `NUMBER: …` for rows of the support table that say *yes* without a test, or name one that is not there.
pub fn unfounded(readme: &Source, sources: &[Source]) -> Vec<String> {
    let rows = readme.text.lines().enumerate().skip_while(|(_, line)| !line.starts_with("| state |")).skip(2);
    let mut found = Vec::new();
    for (i, line) in rows.take_while(|(_, line)| line.starts_with('|')) {
        let columns: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let names: Vec<&str> = columns.last().unwrap_or(&"").split('`').skip(1).step_by(2).collect();
        let is_saved = columns.iter().skip(1).any(|column| column.starts_with("yes"));
        if is_saved && names.is_empty() {
            found.push(format!("{}: saved, says the table, and no test shows it", i + 1));
        }
        let missing = names.into_iter().filter(|name| !exists(name, sources));
        found.extend(missing.map(|name| format!("{}: there is no test {name}", i + 1)));
    }
    found
}

/// A file by its path, or a test by its name: a function that is one, what a macro makes of a row `name: …` in a test, or what a
/// test does of a row `("…", name),`.
fn exists(name: &str, sources: &[Source]) -> bool {
    if name.contains('/') && sources.iter().any(|source| source.path.starts_with(name)) {
        return true;
    }
    let name = name.rsplit("::").next().unwrap_or(name);
    let function = format!("fn {name}");
    let rows = [format!("    {name}: "), format!("\", {name}),")];
    let has_test = |source: &Source| {
        let lines: Vec<&str> = source.text.lines().collect();
        let is_row = |line: &str| {
            source.path.starts_with("tests/") && (line.starts_with(&rows[0]) || line.ends_with(&rows[1]))
        };
        let names = |line: &str| line.contains(&function) && has_word(&code(line), &function);
        let is_it = |(at, line): (usize, &&str)| is_row(line) || (names(line) && is_test(&lines[..at]));
        lines.iter().enumerate().any(is_it)
    };
    sources.iter().filter(|source| source.path.ends_with(".rs")).any(has_test)
}

/// Whether what stands right before a function makes it a test.
fn is_test(before: &[&str]) -> bool {
    let above = before.iter().rev().map(|line| line.trim());
    above.take_while(|line| line.starts_with("#[") || line.starts_with("//")).any(|line| line == "#[test]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_saved_without_a_test_is_found() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources = [source("tests/tests/a.rs", "#[test]\nfn it_holds() {}\nrows! {\n    a_row: 1;\n}\n")];
        let found = |row: &str| {
            let text =
                format!("x\n\n| state | eager | lazy | test |\n|---|---|---|---|\n{row}\n\n| a | yes | |\n");
            unfounded(&source("README.md", &text), &sources)
        };
        assert!(found("| a | yes | yes | `it_holds`, `a_row` |").is_empty());
        assert!(found("| a | refused | | |").is_empty());
        assert_eq!(found("| a | yes; mostly | yes | |").len(), 1);
        assert_eq!(found("| a | refused | | `gone` |").len(), 1);
    }

    #[test]
    fn a_promise_without_its_test_is_found() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let text = "#[test]\n#[cfg(unix)]\n/// It does.\nfn it_holds() {}\nfn it_helps() {}\n\
                    const ALL: &[Scenario] = &[\n    (\"so\", as_a_scenario),\n];\n";
        let sources = [source("tests/tests/a.rs", text)];
        let table =
            |tests| source("SPECIFICATION.md", &format!("| promise | test |\n|---|---|\n| so | {tests} |\n"));
        for good in ["`it_holds`", "`a::it_holds`, `tests/tests/a.rs`", "`as_a_scenario`"] {
            assert!(broken(&table(good), &sources).is_empty(), "{good}");
        }
        assert_eq!(broken(&table("`it_hold`"), &sources), ["3: there is no test or benchmark it_hold"]);
        assert_eq!(broken(&table("`it_helps`"), &sources), ["3: there is no test or benchmark it_helps"]);
        assert_eq!(broken(&table("somewhere"), &sources), ["3: a promise without a test or benchmark"]);
    }
}

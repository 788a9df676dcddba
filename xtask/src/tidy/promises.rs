//! SPECIFICATION.md names a test or benchmark for each promise, and they exist.

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

/// A file by its path, or a function by its name.
fn exists(name: &str, sources: &[Source]) -> bool {
    let function = format!("fn {}", name.rsplit("::").next().unwrap_or(name));
    let has_function = |source: &&Source| {
        source.path.ends_with(".rs") && source.text.lines().any(|line| has_word(&code(line), &function))
    };
    sources.iter().any(|source| source.path == name) || sources.iter().any(|source| has_function(&source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_without_its_test_is_found() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources = [source("tests/tests/a.rs", "#[test]\nfn it_holds() {}\n")];
        let table =
            |tests| source("SPECIFICATION.md", &format!("| promise | test |\n|---|---|\n| so | {tests} |\n"));
        for good in ["`it_holds`", "`a::it_holds`, `tests/tests/a.rs`"] {
            assert!(broken(&table(good), &sources).is_empty(), "{good}");
        }
        assert_eq!(broken(&table("`it_hold`"), &sources), ["3: there is no test or benchmark it_hold"]);
        assert_eq!(broken(&table("somewhere"), &sources), ["3: a promise without a test or benchmark"]);
    }
}

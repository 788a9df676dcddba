//! What is to be run, and with which variables.

use anyhow::{Context, Result, ensure};
use std::fs;

/// What a test is called that becomes the first process itself.
pub const INSTEAD: &str = "instead";

pub struct Plan {
    pub environment: Vec<(String, String)>,
    pub tests: Vec<Test>,
}

pub struct Test {
    pub name: String,
    /// The program and its arguments.
    pub words: Vec<String>,
}

pub fn read() -> Result<Plan> {
    let text = |name: &str| fs::read_to_string(name).with_context(|| name.to_owned());
    parse(&text("/vm-test/environment")?, &text("/vm-test/plan")?)
}

fn parse(environment: &str, tests: &str) -> Result<Plan> {
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = environment.lines().filter_map(pair).collect();
    let test = |line: &str| {
        let mut words = line.split('\t').map(str::to_owned);
        let name = words.next().unwrap_or_default();
        let words: Vec<String> = words.collect();
        ensure!(!words.is_empty(), "a test without a program: {line}");
        Ok(Test { name, words })
    };
    let tests = tests.lines().map(test).collect::<Result<_>>()?;
    Ok(Plan { environment, tests })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_programs_and_arguments() {
        let plan = parse("A=1\nB=x=y\n", "one\t/bin/a\n2\t/bin/b\t--exact\tmod::b\n").unwrap();
        assert_eq!(plan.environment, [("A".into(), "1".into()), ("B".into(), "x=y".into())]);
        assert_eq!(plan.tests[1].words, ["/bin/b", "--exact", "mod::b"]);
        assert!(parse("", "nothing\n").is_err());
    }
}

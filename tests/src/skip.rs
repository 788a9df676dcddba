//! Skips are counted by name: a test that cannot run here says so, it does not pass in silence.

use std::fs::OpenOptions;
use std::io::Write;

/// Names the file to which `cargo xtask test` has skips collected.
pub const COLLECTOR: &str = "CKPTBPF_SKIP_FILE";

/// Records that the test `name` did not run because of `reason`; the test then returns.
pub fn skip(name: &str, reason: &str) {
    // As the test is called, whatever it calls itself.
    let test = crate::matrix::this_test().map(|test| format!("SKIPPED-TEST {test}: {reason}\n"));
    record(&format!("SKIPPED {name}: {reason}\n"), &test.unwrap_or_default());
}

/// Records that a part of a test, `name`, cannot be had here; the test goes on with the others.
pub fn skip_part(name: &str, reason: &str) {
    record(&format!("SKIPPED {name}: {reason}\n"), "");
}

fn record(line: &str, test: &str) {
    eprint!("{line}");
    let line = line.to_owned() + test;
    if let Ok(path) = std::env::var(COLLECTOR) {
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).expect("the skip collector opens");
        file.write_all(line.as_bytes()).expect("the skip collector takes a line");
    }
}

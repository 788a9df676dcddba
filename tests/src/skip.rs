//! Skips are counted by name: a test that cannot run here says so, it does not pass in silence.

use std::fs::OpenOptions;
use std::io::Write;

/// Names the file to which `cargo xtask test` has skips collected.
pub const COLLECTOR: &str = "CKPTBPF_SKIP_FILE";

/// Records that the test `name` did not run because of `reason`; the test then returns.
pub fn skip(name: &str, reason: &str) {
    let mut line = format!("SKIPPED {name}: {reason}\n");
    eprint!("{line}");
    // As the test is called, whatever it calls itself.
    if let Some(test) = crate::matrix::this_test() {
        line += &format!("SKIPPED-TEST {test}: {reason}\n");
    }
    if let Ok(path) = std::env::var(COLLECTOR) {
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).expect("the skip collector opens");
        file.write_all(line.as_bytes()).expect("the skip collector takes a line");
    }
}

//! Which test has restarted a job, how, and how often: what the README's support table is made from (docs/support.toml).
//!
//! One line a restart: `BINARY TEST⇥MODE⇥NUMBER`, the number being the restart's in its job, from 1. That the restarted
//! program is right is what the test passing says.

use std::fs::OpenOptions;
use std::io::Write;

use crate::scenario::Mode;

/// Names the file to which `cargo xtask test` has restarts collected.
pub const COLLECTOR: &str = "CKPTBPF_RESTARTS_FILE";

/// Notes the `number`th restart of a job by the test that runs on this thread.
pub fn note(mode: Mode, number: usize) {
    let (Ok(path), Some(test)) = (std::env::var(COLLECTOR), this_test()) else { return };
    let mode = if mode == Mode::Lazy { "lazy" } else { "eager" };
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).expect("the collector of restarts opens");
    file.write_all(format!("{test}\t{mode}\t{number}\n").as_bytes()).expect("it takes a line");
}

/// `BINARY PATH::NAME` of the test that runs on this thread; the binary without the hash that cargo gives it.
pub fn this_test() -> Option<String> {
    let path = std::env::current_exe().ok()?;
    let binary = path.file_name()?.to_str()?;
    let binary = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
    Some(format!("{binary} {}", std::thread::current().name()?))
}

//! Tests that cannot run here say so, and are counted by `cargo xtask test`, as `ckpt_tests::skip` has it.

use std::fs::File;
use std::io::Write;

/// Names the file to which `cargo xtask test` has skips collected.
const COLLECTOR: &str = "CKPTBPF_SKIP_FILE";

/// Whether the test of this thread takes rights that are not here: it is skipped then.
pub fn without_root() -> bool {
    let is_skipped = !nix::unistd::geteuid().is_root();
    if is_skipped {
        because("it takes root's rights");
    }
    is_skipped
}

/// Records that the test of this thread, or a part of it, did not run.
pub fn because(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a test"));
    eprint!("{line}");
    if let Some(path) = std::env::var_os(COLLECTOR) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

//! The victims are what the scenarios take them for: an undisturbed run gives the same bytes each time.

use ckpt_tests::{Cmd, Sandbox, victim};

/// Runs a victim twice and compares what it prints and, where it writes one, its file.
fn twice(name: &str, make: impl Fn(&str) -> Cmd, writes: bool) {
    let sandbox = Sandbox::new(name);
    let run = |file: &str| {
        let printed = sandbox.run(make(file)).success().stdout;
        let written = std::fs::read(sandbox.dir().join(file)).unwrap_or_default();
        assert_eq!(writes, !written.is_empty(), "{name} and its file");
        (printed, written)
    };
    let first = run("first");
    assert!(!first.0.is_empty(), "{name} prints nothing");
    assert!(first == run("second"), "{name}: two runs differ");
}

#[test]
fn count() {
    twice("count", |file| Cmd::new(victim("count")).args([file, "50", "100"]), true);
    twice("count_static", |file| Cmd::new(victim("count_static")).args([file, "50", "100"]), true);
}

#[test]
fn count_scripts() {
    twice("count.sh", |file| Cmd::new(victim("count.sh")).args([file, "20", "0.001"]), true);
    twice(
        "count.py",
        |file| Cmd::new("/usr/bin/python3").arg(victim("count.py")).args([file, "20", "1000"]),
        true,
    );
}

//! The victims are what the scenarios take them for: an undisturbed run gives the same bytes each time.

use std::time::Duration;

use ckpt_tests::{Cmd, Sandbox, victim_cmd};

const SOON: Duration = Duration::from_secs(20);

/// Runs a victim twice and compares what it prints and, where it writes one, its file.
fn twice(name: &str, args: &[&str]) -> String {
    let sandbox = Sandbox::new(name);
    let run = |file: &str| {
        let args = args.iter().map(|arg| arg.replace("FILE", file));
        let printed = sandbox.run(victim_cmd(name).args(args)).success().stdout_text();
        (printed, std::fs::read(sandbox.dir().join(file)).unwrap_or_default())
    };
    let first = run("first");
    assert!(!first.0.is_empty(), "{name} prints nothing");
    assert_eq!(args.contains(&"FILE"), !first.1.is_empty(), "{name} and its file");
    assert!(first == run("second"), "{name}: two runs differ");
    first.0
}

/// `cargo xtask vm-test` takes them to machines without a compiler.
#[test]
fn all_are_compiled() {
    let found: Vec<_> = ckpt_tests::victim::all().collect();
    assert!(found.len() > 30 && found.iter().all(|path| path.is_file()), "{found:?}");
}

#[test]
fn count() {
    twice("count", &["FILE", "50", "100"]);
    twice("count_static", &["FILE", "50", "100"]);
}

#[test]
fn count_in_scripts() {
    twice("count.sh", &["FILE", "20", "0.001"]);
    twice("count.py", &["FILE", "20", "1000"]);
}

#[test]
fn matrix_with_numpy() {
    twice("matrix.py", &["20", "1000"]);
}

#[test]
fn pipeline() {
    twice("pipeline.sh", &["30", "0.001"]);
}

#[test]
fn memory() {
    let printed = twice("memory", &["16", "5", "FILE", "-"]);
    assert_eq!(printed.lines().count(), 6);
}

#[test]
fn memory_waits_at_its_gate() {
    let sandbox = Sandbox::new("gate");
    sandbox.run("mkfifo gate").success();
    let by_fifo = sandbox.spawn(victim_cmd("memory").args(["1", "2", "fifo_sums", "./gate"]));
    let by_signal = sandbox.spawn(victim_cmd("memory").args(["1", "2", "signal_sums", "signal"]));
    for step in ["0 ", "1 ", "2 "] {
        by_fifo.wait_for_output(step, SOON);
        by_signal.wait_for_output(step, SOON);
        assert_eq!(by_fifo.stdout(), by_signal.stdout());
        assert_eq!(String::from_utf8(by_fifo.stdout()).unwrap().lines().last().unwrap().get(..2), Some(step));
        if step != "2 " {
            sandbox.run("echo -n x > gate").success();
            by_signal.kill(nix::sys::signal::Signal::SIGUSR1);
        }
    }
    by_fifo.wait(SOON).success();
    by_signal.wait(SOON).success();
}

#[test]
fn registers() {
    twice("fpu", &["30", "100"]);
}

#[test]
fn threads_and_openmp() {
    twice("threads16", &["20", "100"]);
    twice("openmp", &["10", "100"]);
}

#[test]
fn signals() {
    twice("signals", &["20", "100"]);
}

#[test]
fn sleeps() {
    let printed = twice("sleeps", &["300", "2"]);
    let wrong: Vec<_> = printed
        .lines()
        .filter(|line| ![" ok", " sleeping", " late"].iter().any(|end| line.ends_with(end)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(printed.lines().count(), 2 * 19);
    assert_eq!(twice("sleeps", &["200", "1", "poll,futex"]).lines().count(), 4);
}

#[test]
fn forktree() {
    let printed = twice("forktree", &["10", "100"]);
    assert_eq!(printed.lines().count(), 10 * 15 + 1);
    twice("forktree", &["3", "100", "zombie"]);
}

#[test]
fn sharing() {
    let printed = twice("sharing", &["60", "100"]);
    assert_eq!(printed.lines().count(), 60 + 1);
}

#[test]
fn descriptors() {
    twice("fds", &[".", "10", "100"]);
}

#[test]
fn descriptors_are_reported_on_a_signal() {
    let sandbox = Sandbox::new("report");
    let running = sandbox.spawn(victim_cmd("fds").args([".", "1000000", "1000"]));
    running.wait_for_output("2 ", SOON);
    running.kill(nix::sys::signal::Signal::SIGUSR1);
    sandbox.wait_for("the report", SOON, || running.stderr().contains("120: "));
    assert!(running.stderr().contains("eventfd-count:"), "{}", running.stderr());
    running.kill_group(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(running.wait(SOON).code(), 137);
}

#[test]
fn mappings() {
    twice("maps", &[".", "100", "100"]);
}

#[test]
fn a_wrong_byte_shows() {
    let sandbox = Sandbox::new("wrong_byte");
    let running = sandbox.spawn(victim_cmd("maps").args([".", "1000000", "1000"]));
    running.wait_for_output("3 ", SOON);
    // Behind its back, as a bad restart would: one byte in the middle of the file that it has mapped privately.
    let spoil = Cmd::sh("printf X | dd of=private bs=1 seek=200000 conv=notrunc status=none");
    sandbox.run(spoil).success();
    let stderr = running.wait(SOON).expect_code(3).stderr_text();
    assert!(stderr.contains("private file, page 48"), "{stderr}");
}

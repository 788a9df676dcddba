//! Seccomp filters and strict mode are there again, thread by thread, and come in the way of no checkpoint.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{MODES, Survival, held, let_go, survive};
use ckpt_tests::{Job, Sandbox, victim_cmd};

fn survives(name: &str, options: &[&str]) {
    let program = victim_cmd("seccomp").args(["300", "3000"]);
    survive(&Survival { rounds: 3, options, ..Survival::of(name, program) });
}

#[test]
fn what_is_denied_stays_denied_thread_by_thread() {
    survives("seccomp", &[]);
}

#[test]
fn what_is_denied_stays_denied_without_bpf() {
    survives("seccomp_injected", &["--no-bpf"]);
}

/// The filters kill whoever makes a userfaultfd, and strict mode whoever does anything: neither happens, and yet all of the
/// processes are tracked.
#[test]
fn checkpoints_of_a_filtered_program_are_deltas_before_and_after_a_restart() {
    let sandbox = Sandbox::new("seccomp_deltas");
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, victim_cmd("seccomp").args(["20", "1000"])));
    job.running().wait_for_output("\n19 ", Duration::from_secs(30));
    let full = job.checkpoint();
    for mode in MODES {
        job.checkpoint();
        let delta = job.checkpoint();
        assert_eq!(delta.kind, "delta");
        assert!(delta.pages * 2 < full.pages, "{} pages of {}: not tracked", delta.pages, full.pages);
        job.kill_all();
        job.restart(*mode, &[]);
        job.program();
    }
    let_go(&sandbox);
    job.wait(Duration::from_secs(30)).success();
    let printed = String::from_utf8(job.stdout()).unwrap();
    assert!(printed.ends_with("one thread was killed\nended with 500 600 700\n"), "{printed}");
}

//! Somebody removes checkpoints of a running job, as the purge of a scratch file system does: none is made that relies on them.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::calls::{Calls, From, interrupts};
use ckpt_tests::scenario::verb;
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn program(gate: &str) -> Cmd {
    victim_cmd("memory").args(["4", "9", "f", gate])
}

/// The program, and what an undisturbed run of it gives.
fn launch<'b>(sandbox: &'b Sandbox, options: &[&str]) -> (Job<'b>, Expected) {
    let expected = Expected::of(sandbox, &program("-"), Some("f"));
    let job = Job::launch(sandbox, options, &program("signal"));
    job.running().wait_for_output("0 ", SOON);
    job.program();
    (job, expected)
}

fn step(job: &Job, number: u32) {
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output(&format!("{number} "), SOON);
}

fn ends_as_expected(sandbox: &Sandbox, job: &mut Job, expected: &Expected) {
    job.walk().success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("f")).unwrap());
}

fn remove(job: &Job, id: u64) {
    std::fs::remove_file(job.image(id)).unwrap();
}

/// The newest, one in the midst, the full one, all.
#[test]
fn without_a_checkpoint_that_is_gone_the_next_one_is_full() {
    for gone in [&[3][..], &[2], &[1], &[1, 2, 3]] {
        let sandbox = Sandbox::new("purged");
        let (mut job, expected) = launch(&sandbox, &["-v"]);
        for id in 1..=3 {
            step(&job, id);
            assert_eq!(job.checkpoint().id, u64::from(id));
        }
        gone.iter().for_each(|id| remove(&job, *id));
        step(&job, 4);
        let whole = job.checkpoint();
        assert_eq!((whole.id, whole.parent, whole.complete), (4, None, true), "{gone:?} are gone");
        let said = format!("checkpoint {} is no longer in", gone.iter().max().unwrap());
        assert!(job.running().stderr().contains(&said), "{}", job.running().stderr());
        step(&job, 5);
        let delta = job.checkpoint();
        assert_eq!((delta.id, delta.parent, delta.complete), (5, Some(4), true), "{gone:?} are gone");
        step(&job, 6);
        job.kill_all();
        job.restart(Mode::Eager, &[]);
        step(&job, 6);
        assert_eq!(job.checkpoint().parent, Some(5));
        job.kill_all();
        job.restart(Mode::Lazy, &[]);
        ends_as_expected(&sandbox, &mut job, &expected);
    }
}

/// What has not arrived yet of a lazy restart is in the full one, too.
fn full_while_pages_are_missing(name: &str, options: &[&str], purge: bool) {
    let sandbox = Sandbox::new(name);
    let (mut job, expected) = launch(&sandbox, &[]);
    step(&job, 1);
    job.checkpoint();
    job.kill_all();
    let hold = sandbox.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    job.restart(Mode::Lazy, &[&["--hold-fill", hold.to_str().unwrap()], options].concat());
    job.program();
    assert!(job.pages_missing() > 0);
    if purge {
        remove(&job, 1);
    }
    let whole = job.checkpoint();
    assert_eq!((whole.id, whole.parent, whole.complete), (2, None, true));
    std::fs::remove_file(&hold).unwrap();
    step(&job, 2);
    job.kill_all();
    for mode in [Mode::Eager, Mode::Lazy] {
        job.restart_at(2, mode, &["--track", "pagemap-scan"]);
        step(&job, 2);
        if mode == Mode::Eager {
            job.kill_all();
        }
    }
    ends_as_expected(&sandbox, &mut job, &expected);
}

#[test]
fn without_the_checkpoint_that_pages_still_come_from_the_next_one_is_full() {
    full_while_pages_are_missing("purged_lazily", &[], true);
}

#[test]
fn a_full_checkpoint_while_pages_are_missing_holds_them() {
    full_while_pages_are_missing("full_lazily", &["--track", "full"], false);
}

/// It is refused, and the one after it is full.
#[test]
fn a_checkpoint_that_goes_while_the_next_one_is_made() {
    let sandbox = Sandbox::new("purged_meanwhile");
    let (mut job, expected) = launch(&sandbox, &[]);
    job.checkpoint();
    step(&job, 1);
    let first = sandbox.see(&job.image(1));
    let ckptbpf = job.running().outside_pid().expect("it runs");
    let remove = Box::new(move || std::fs::remove_file(first).unwrap());
    let calls = Calls::of(ckptbpf, From::Now, (interrupts, 1), remove);
    let refused = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125).stderr_text();
    assert!(
        refused.contains("checkpoint 1, without which this one could not be restarted from"),
        "{refused}"
    );
    assert_eq!(job.newest(), 0);
    let whole = job.checkpoint();
    assert_eq!((whole.parent, whole.complete), (None, true));
    step(&job, 2);
    job.kill_all();
    assert!(calls.end(), "it was not removed");
    job.restart(Mode::Eager, &[]);
    ends_as_expected(&sandbox, &mut job, &expected);
}

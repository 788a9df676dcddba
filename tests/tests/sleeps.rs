//! A sleeping call goes on for the time that was left, whatever interrupts it: checkpoints, or death and restart.

use std::time::Duration;

use ckpt_tests::sandbox::scaled;
use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Expected, Job, Sandbox, assert_same, victim_cmd};

/// All that the kernel or we continue; a call that begins anew after each stop would not end before the program.
const KINDS: &str =
    "nanosleep,clock_nanosleep,poll,ppoll,select,epoll_wait,futex,sigtimedwait,semtimedop,pause,read";

#[test]
fn they_go_on_after_a_restart() {
    let program = victim_cmd("sleeps").args(["900", "4", KINDS]);
    survive(&Survival { rounds: 3, ..Survival::of("sleeps", program) });
}

#[test]
fn twenty_checkpoints_do_not_make_them_longer() {
    let sandbox = Sandbox::new("sleeps_through_checkpoints");
    let ms = scaled(Duration::from_secs(5)).as_millis().to_string();
    let program = victim_cmd("sleeps").args([&ms, "1", KINDS]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &program);
    job.wait_for_checkpoint(20);
    assert!(!job.running().has_ended());
    job.wait(Duration::from_secs(30)).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

#[test]
fn epoll_wait_ends_neither_early_nor_late() {
    let sandbox = Sandbox::new("epoll_wait");
    let program = victim_cmd("sleeps").args(["3000", "1", "epoll_wait"]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &program);
    job.wait(Duration::from_secs(30)).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

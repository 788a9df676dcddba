//! Shared memory, and memory that the kernel or another process writes.

use super::{Case, OWN, SOON, Taken, compare, restart};
use ckpt_tests::scenario::verb;
use ckpt_tests::{Random, Sandbox, sandbox::let_pass};
use std::time::Duration;

fn run(row: &str) -> Taken {
    Case::of(&[row]).run()
}

#[test]
fn hole_punched_in_shared_memory() {
    let taken = run("punched");
    assert!(taken.delta().pages <= OWN && taken.delta().zero_pages >= 22, "{:?}", taken.delta());
}

#[test]
fn shared_memory_written_through_another_mapping() {
    let taken = run("alias");
    assert!(taken.delta().pages <= OWN, "{:?}", taken.delta());
}

#[test]
fn read_into_memory() {
    run("read").assert_clean();
}

#[test]
fn process_vm_writev_into_memory() {
    run("writev").assert_clean();
}

#[test]
fn proc_mem_written() {
    run("mem").assert_clean();
}

#[test]
fn direct_read_that_is_complete() {
    run("direct").assert_clean();
}

/// Checkpoints at random moments while threads of the program work all the time.
fn at_random_moments(row: &str, rounds: usize) {
    let sandbox = Sandbox::new(&format!("dirty-{row}"));
    let mut random = Random::for_test(row);
    let mut job = Case { rows: &[row], steps: 0, options: &[] }.launch(&sandbox);
    let program = job.program();
    for time in 1..=rounds {
        for _ in 0..4 {
            let_pass(random.moment(Duration::from_millis(30)));
            // On a busy machine a running thread may not stop in time: then nothing was changed.
            sandbox
                .wait_for("a checkpoint", SOON, || sandbox.run(verb("checkpoint", [job.dir()])).code() == 0);
        }
        job.kill_all();
        restart(&sandbox, &mut job);
        compare(&sandbox, &job, program, time as u64);
    }
    job.kill_all();
    sandbox.wait_for("the job to be gone", SOON, || sandbox.ps().is_empty());
}

#[test]
fn direct_reads_in_flight_over_a_scan() {
    at_random_moments("streaming", 4);
}

#[test]
fn pages_written_and_dropped_while_a_checkpoint_is_made() {
    at_random_moments("churn", 4);
}

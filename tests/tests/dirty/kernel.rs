//! Shared memory, and memory that the kernel or another process writes.

use super::{Case, OWN, SOON, Taken, compare, restart};
use ckpt_tests::scenario::verb;
use ckpt_tests::{Job, Random, Sandbox, sandbox::let_pass, skip};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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

/// Makes the disk slow for a process while this is there: its reads are in flight for a tenth of a second.
struct Slow(PathBuf);

impl Slow {
    /// `None` where there is no such control (version 1 of cgroups, CONFIG_BLK_DEV_THROTTLING).
    fn disk(sandbox: &Sandbox, program: i32) -> Option<Self> {
        let device = std::fs::metadata(sandbox.dir()).ok()?.dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        let folder = PathBuf::from(format!("/sys/fs/cgroup/blkio/slow-disk-{}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        let slow = Self(folder);
        let limit = format!("{device} {}", 40 << 20);
        std::fs::write(slow.0.join("blkio.throttle.read_bps_device"), limit).ok()?;
        slow.holds(sandbox, program)?;
        Some(slow)
    }

    fn holds(&self, sandbox: &Sandbox, program: i32) -> Option<()> {
        let outside = sandbox.outside_pid(program)?;
        std::fs::write(self.0.join("cgroup.procs"), outside.to_string()).ok()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

#[test]
fn direct_reads_in_flight_over_a_scan() {
    // Declared first, it goes last: when the box has ended nobody is in the cgroup.
    let mut until_the_box_has_ended = None;
    let sandbox = Sandbox::new("dirty-streaming");
    let mut job = Case { rows: &["streaming"], steps: 0, options: &[] }.launch(&sandbox);
    let program = job.program();
    let slow = &*until_the_box_has_ended.insert(Slow::disk(&sandbox, program));
    if slow.is_none() {
        skip::skip("direct_reads_in_flight_over_a_scan: slow disk", "no blkio throttling here");
    }
    for time in 1..=3 {
        for _ in 0..3 {
            take(&sandbox, &job);
        }
        job.kill_all();
        restart(&sandbox, &mut job);
        compare(&sandbox, &job, program, time);
        if let Some(slow) = slow {
            slow.holds(&sandbox, program).expect("the program runs again");
        }
    }
    job.kill_all();
}

/// A checkpoint. On a busy machine a running thread may not stop in time: then nothing was changed.
fn take(sandbox: &Sandbox, job: &Job) {
    sandbox.wait_for("a checkpoint", SOON, || sandbox.run(verb("checkpoint", [job.dir()])).code() == 0);
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
            take(&sandbox, &job);
        }
        job.kill_all();
        restart(&sandbox, &mut job);
        compare(&sandbox, &job, program, time as u64);
    }
    job.kill_all();
    sandbox.wait_for("the job to be gone", SOON, || sandbox.ps().is_empty());
}

#[test]
fn pages_written_and_dropped_while_a_checkpoint_is_made() {
    at_random_moments("churn", 4);
}

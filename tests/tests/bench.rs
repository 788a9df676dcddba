//! The program that `cargo xtask bench` measures with tells the truth: of itself, and of how it was held up.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::{Job, Sandbox, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// What a line of it says of the time since the line before.
struct Told {
    nanoseconds: u64,
    sums: u64,
    written: u64,
    longest: u64,
}

/// Asks for line `number`, and waits for it.
fn ask(sandbox: &Sandbox, job: &Job, number: usize) -> Told {
    job.signal(Signal::SIGUSR1);
    let lines = || String::from_utf8(job.running().stdout()).unwrap();
    sandbox.wait_for(&format!("line {number}"), SOON, || lines().matches('\n').count() > number);
    let line = lines().lines().nth(number).unwrap().to_owned();
    let fields: Vec<u64> = line.split(' ').map(|field| field.parse().unwrap()).collect();
    let [at, nanoseconds, sums, written, longest] = fields[..] else { panic!("{line}") };
    assert_eq!(at, number as u64);
    Told { nanoseconds, sums, written, longest }
}

/// How long the last freeze has held all threads at least, in microseconds: what is done between stopping and letting go.
fn held(sandbox: &Sandbox, job: &Job) -> u64 {
    const BETWEEN: [&str; 6] =
        ["hidden_us", "descriptors_us", "mappings_us", "tasks_us", "scan_us", "copy_us"];
    let text = std::fs::read_to_string(sandbox.see(job.dir()).join("events.jsonl")).unwrap();
    let mut events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let freeze = events.rfind(|event| event["phase"] == "freeze").unwrap();
    BETWEEN.iter().map(|part| freeze[*part].as_u64().unwrap()).sum()
}

#[test]
fn a_freeze_is_in_the_longest_time_between_two_looks_at_the_clock() {
    let sandbox = Sandbox::new("bench_freeze");
    let program = victim_cmd("bench").args(["16", "compressible", "2000", "3", "40", "20", "off"]);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("\n", SOON);
    for round in 0..3 {
        ask(&sandbox, &job, 2 * round + 1);
        let taken = job.checkpoint();
        let told = ask(&sandbox, &job, 2 * round + 2);
        let held = held(&sandbox, &job);
        assert!(held > 0 && told.longest >= 1000 * held, "{held} us of {} ns, {taken:?}", told.longest);
        assert!(told.longest <= told.nanoseconds && told.sums > 0);
        // 2000 a second, and what was late when the line before was written.
        assert!(
            told.written <= told.nanoseconds / 500_000 + 4,
            "{} in {} ns",
            told.written,
            told.nanoseconds
        );
    }
    sandbox.kill(job.program(), Signal::SIGTERM as i32).unwrap();
    job.wait(SOON).expect_code(143);
}

#[test]
fn it_has_the_threads_mappings_and_files_that_are_asked_for() {
    let sandbox = Sandbox::new("bench_shape");
    let shape = |threads: &str, mappings: &str, files: &str| {
        let args = ["1", "random", "0", threads, mappings, files, "-"];
        let running = sandbox.spawn(victim_cmd("bench").args(args));
        running.wait_for_output("\n", SOON);
        let proc = sandbox.root().join(format!("proc/{}", running.pid));
        let count = |folder| std::fs::read_dir(proc.join(folder)).unwrap().count();
        let (tasks, files) = (count("task"), count("fd"));
        let maps = std::fs::read_to_string(proc.join("maps")).unwrap();
        // Every other of its mappings is only to be read, and of no file.
        let is_other = |line: &&str| line.trim_end().ends_with("r--p 00000000 00:00 0");
        let others = maps.lines().filter(is_other).count();
        running.kill(Signal::SIGKILL);
        running.wait(SOON).expect_code(137);
        (tasks, others, files)
    };
    let (tasks, others, files) = shape("1", "0", "0");
    assert_eq!((tasks, others), (1, 0));
    assert_eq!(shape("5", "40", "30"), (5, 20, files + 30));
}

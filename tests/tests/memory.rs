//! A delta holds what changed and no more, and each kept generation gives the memory of its moment.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{MODES, verb};
use ckpt_tests::{Cmd, Expected, Generation, Job, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);
const STEPS: usize = 6;

/// `mib` of memory of which each step, on a signal, rewrites 1 %.
fn program(mib: u64, gate: &str) -> Cmd {
    // A step more than is ever let through: no run ends by itself.
    victim_cmd("memory").args([&mib.to_string(), &(STEPS + 1).to_string(), "sums", gate])
}

/// Lets the program take one step and waits for its checksum.
fn step(job: &Job, number: usize) {
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output(&format!("{number} "), SOON);
}

/// The memory of each generation is as it was: one more step from there has the undisturbed run's checksum.
fn restart_at_each(job: &mut Job, expected: &Expected, generations: impl IntoIterator<Item = u64>) {
    let text = String::from_utf8_lossy(&expected.stdout).into_owned();
    for id in generations {
        for mode in MODES {
            job.restart_at(id, *mode, &["-i", "0"]);
            let next = usize::try_from(id).unwrap();
            step(job, next);
            let printed = String::from_utf8(job.running().stdout()).unwrap();
            assert_eq!(printed.trim_end(), text.lines().nth(next).unwrap(), "generation {id}, {mode:?}");
            job.kill_all();
        }
    }
}

/// Checkpoints after each step but the last: number k holds the memory after step k-1. Then they are restarted from,
/// each of `before` as they are, each of `after` once all but the two newest are merged.
fn history(mib: u64, before: &[u64], after: &[u64]) -> Vec<Generation> {
    let sandbox = Sandbox::with_limit(&format!("memory{mib}"), Duration::from_secs(170));
    let expected = Expected::of(&sandbox, &program(mib, "-"), Some("sums"));
    let mut job = Job::launch(&sandbox, &["--keep", "100"], &program(mib, "signal"));
    job.running().wait_for_output("0 ", SOON);
    let mut taken = vec![job.checkpoint()];
    for number in 1..STEPS {
        step(&job, number);
        taken.push(job.checkpoint());
    }
    assert_same("what it printed", &expected.stdout[..job.stdout().len()], &job.stdout());
    job.kill_all();
    restart_at_each(&mut job, &expected, before.iter().copied());
    sandbox.run(verb("prune", ["--keep", "2"]).arg(job.dir())).success();
    sandbox.run(verb("verify", [job.dir()])).success();
    let kept: Vec<u64> = job.checkpoints().iter().map(|one| one.id).collect();
    assert_eq!(kept, [5, 6], "the two newest are kept");
    restart_at_each(&mut job, &expected, after.iter().copied());
    taken
}

#[test]
fn a_delta_of_one_gibibyte_holds_one_percent() {
    // All of them take a minute: in CI those of the small one below have to do.
    let all_of_them = std::env::var_os("CKPTBPF_EVERY_GENERATION").is_some();
    let taken =
        if all_of_them { history(1024, &[1, 2, 3, 4, 5, 6], &[5, 6]) } else { history(1024, &[], &[6]) };
    let all = 1024 << 8;
    assert!(taken[0].kind == "full" && taken[0].pages >= all, "{:?}", taken[0]);
    for delta in &taken[1..] {
        assert_eq!(delta.kind, "delta", "{delta:?}");
        assert!(delta.pages * 1000 <= all * 15, "more than 1.5 % of the pages: {delta:?}");
    }
}

#[test]
fn each_generation_gives_the_memory_of_its_moment() {
    let taken = history(16, &[1, 2, 3, 4, 5, 6], &[5, 6]);
    assert_eq!(taken.len(), STEPS);
}

/// Half of the memory in each step: three deltas are as much as the full one, and it pays to merge.
fn rewriting(gate: &str) -> Cmd {
    victim_cmd("memory").args(["16", "10", "sums", gate, "50"])
}

/// How often the supervisor has merged, and deleted what had become superfluous.
fn merges(sandbox: &Sandbox, job: &Job) -> usize {
    let text = std::fs::read_to_string(sandbox.see(job.dir()).join("events.jsonl")).unwrap_or_default();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|event| event["phase"] == "prune" && event["merged"] == 1).count()
}

/// Exactly the checkpoints that `ids` says are there, as files too: the oldest of them full, and each has all it needs.
fn assert_kept(sandbox: &Sandbox, job: &Job, ids: [u64; 3]) {
    let kept = job.checkpoints();
    let shown: Vec<(u64, &str, bool)> =
        kept.iter().map(|one| (one.id, one.kind.as_str(), one.complete)).collect();
    let [oldest, middle, newest] = ids;
    assert_eq!(shown, [(oldest, "full", true), (middle, "delta", true), (newest, "delta", true)]);
    let files = std::fs::read_dir(job.dir()).unwrap().map(|entry| entry.unwrap().path());
    let images = files.filter(|path| path.extension().is_some_and(|end| end == "ckpt")).count();
    assert_eq!(images, 3, "files of checkpoints that are not listed");
    sandbox.run(verb("verify", [job.dir()])).success();
}

/// Nobody says how many to keep, and nobody prunes. Nine checkpoints are merged twice, the second time over a merged one.
#[test]
fn a_running_job_merges_by_itself_and_each_generation_kept_gives_the_memory_of_its_moment() {
    let sandbox = Sandbox::with_limit("memory_merged", Duration::from_secs(170));
    let expected = Expected::of(&sandbox, &rewriting("-"), Some("sums"));
    let text = String::from_utf8(expected.stdout).unwrap();
    let sums: Vec<&str> = text.lines().collect();
    let mut job = Job::launch(&sandbox, &[], &rewriting("asked"));
    job.running().wait_for_output("0 ", SOON);
    job.program();
    for id in 1..=9 {
        // Nobody lists them meanwhile: a generation that somebody reads is not merged.
        job.try_checkpoint().success();
        if id % 3 == 0 && id > 3 {
            sandbox.wait_for("merging", SOON, || merges(&sandbox, &job) == id / 3 - 1);
            assert_kept(&sandbox, &job, [id - 2, id - 1, id].map(|id| u64::try_from(id).unwrap()));
        }
        if id < 9 {
            step(&job, id);
        }
    }
    job.kill_all();
    for id in 7..=9 {
        for mode in MODES {
            job.restart_at(id, *mode, &["-i", "0"]);
            let last = usize::try_from(id).unwrap() - 1;
            job.signal(Signal::SIGUSR2);
            job.running().wait_for_output(&format!("{last} "), SOON);
            step(&job, last + 1);
            let printed = String::from_utf8(job.running().stdout()).unwrap();
            let printed: Vec<&str> = printed.lines().collect();
            assert_eq!(printed, sums[last..=last + 1], "generation {id}, {mode:?}");
            job.kill_all();
        }
    }
    assert_kept(&sandbox, &job, [7, 8, 9]);
}

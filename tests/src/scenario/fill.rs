//! How far the memory of a lazily restarted program is there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::{Job, Mode};
use crate::sandbox::Sandbox;

const PATIENCE: Duration = Duration::from_secs(60);

/// How often all pages of the job were there after a lazy restart.
pub fn fills_done(sandbox: &Sandbox, job: &Job) -> usize {
    let events = sandbox.see(job.dir()).join("events.jsonl");
    std::fs::read_to_string(events).unwrap_or_default().matches("lazy-done").count()
}

/// From the resumption of the program until all its pages are there; it is killed then.
pub fn time_of_a_fill(sandbox: &Sandbox, job: &mut Job, from: u64) -> Duration {
    let before = fills_done(sandbox, job);
    job.restart_at(from, Mode::Lazy, &["--json"]);
    sandbox.wait_for("its resumption", PATIENCE, || job.running().stderr().contains("resume_us"));
    let begun = Instant::now();
    sandbox.wait_for("lazy-done", PATIENCE, || {
        assert!(!job.running().has_ended(), "{}", job.running().stderr());
        fills_done(sandbox, job) > before
    });
    let took = begun.elapsed();
    job.kill_all();
    println!("a fill takes {} ms", took.as_millis());
    took
}

/// How many pages of its largest mapping the programs of that name lack: one that they have written all of.
pub fn missing_pages(sandbox: &Sandbox, comm: &str) -> usize {
    let programs = sandbox.ps().into_iter().filter(|one| one.comm == comm);
    programs.filter_map(|one| missing_in_the_largest(sandbox, one.pid)).sum()
}

/// `None` of a program that is gone.
fn missing_in_the_largest(sandbox: &Sandbox, pid: i32) -> Option<usize> {
    /// Present, or swapped out.
    const THERE: u64 = 3 << 62;
    let proc = sandbox.root().join(format!("proc/{pid}"));
    let maps = std::fs::read_to_string(proc.join("maps")).ok()?;
    let page = |address| Some(u64::from_str_radix(address, 16).ok()? >> 12);
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((page(start)?, page(end)?))
    });
    let (start, end) = ranges.max_by_key(|(start, end)| end - start)?;
    let mut words = vec![0; usize::try_from(end - start).ok()? * 8];
    File::open(proc.join("pagemap")).ok()?.read_exact_at(&mut words, start * 8).ok()?;
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    Some(words.chunks_exact(8).filter(|bytes| word(bytes) & THERE == 0).count())
}

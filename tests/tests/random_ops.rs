//! Random operations, random checkpoints, kills and restarts; the output is that of an undisturbed run.
//!
//! `CKPTBPF_RANDOM_SEEDS` says how many seeds instead of 200, `CKPTBPF_RANDOM_SEED` repeats the job that begins with one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use ckpt_tests::random_ops::{BUGS, notices, run};
use ckpt_tests::scenario::Tool;
use ckpt_tests::{Sandbox, ckptbpf, skip};

/// Seeds that run as one job.
const TOGETHER: u64 = 5;
/// Tests, of which some run side by side.
const PARTS: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Part `part` of all jobs. `CKPTBPF_SEED` makes other seeds of them.
fn part(part: u64) {
    let base = (number("CKPTBPF_SEED").unwrap_or(1) - 1) * 1_000_000 + 1;
    let jobs = number("CKPTBPF_RANDOM_SEEDS").unwrap_or(200).div_ceil(TOGETHER);
    let once = number("CKPTBPF_RANDOM_SEED");
    let firsts: Vec<u64> = match once {
        Some(seed) if part == 0 => vec![seed],
        Some(_) => Vec::new(),
        None => (0..jobs).filter(|job| job % PARTS == part).map(|job| base + job * TOGETHER).collect(),
    };
    let mut failed = Vec::new();
    for first in firsts {
        let seeds: Vec<u64> = (first..first + TOGETHER).collect();
        let name = format!("random-{first}");
        if catch_unwind(AssertUnwindSafe(|| run(&name, Tool::default(), &seeds, true))).is_err() {
            failed.push(first);
        }
    }
    assert!(failed.is_empty(), "jobs that failed, by their first seed: {failed:?}");
}

macro_rules! parts {
    ($($name:ident: $part:expr),* $(,)?) => {
        $(#[test]
        fn $name() {
            part($part);
        })*
    };
}

parts! {
    random_operations_1: 0,
    random_operations_2: 1,
    random_operations_3: 2,
    random_operations_4: 3,
    random_operations_5: 4,
    random_operations_6: 5,
    random_operations_7: 6,
    random_operations_8: 7,
}

#[test]
fn what_a_bug_would_do_is_noticed() {
    let sandbox = Sandbox::new("random-damage");
    for bug in BUGS {
        let by = (1..=20).find(|&seed| notices(&sandbox, seed, bug));
        println!("{bug}: noticed by seed {by:?}");
        assert!(by.is_some(), "{bug} is not noticed");
    }
}

#[test]
fn planted_bugs_are_found() {
    if number("CKPTBPF_PLANTED").is_none() {
        return skip::skip("planted_bugs_are_found", "needs ckptbpf built once more: cargo xtask soak");
    }
    let binary = ckptbpf().with_file_name("ckptbpf-planted");
    let plant = |bug: &str, first: u64| {
        let seeds: Vec<u64> = (first..first + TOGETHER).collect();
        let environment = vec![("CKPTBPF_PLANT".to_owned(), bug.to_owned())];
        run(
            &format!("planted-{bug}-{first}"),
            Tool { binary: binary.clone(), environment, ..Tool::default() },
            &seeds,
            false,
        );
    };
    // Without a bug nothing is found.
    plant("none", 1);
    for bug in BUGS {
        let found = (0..200 / TOGETHER).find_map(|job| {
            let first = 1 + job * TOGETHER;
            let panicked = catch_unwind(AssertUnwindSafe(|| plant(bug, first))).err()?;
            Some((first, panicked.downcast_ref::<String>().cloned().unwrap_or_default()))
        });
        let Some((first, message)) = found else { panic!("{bug} is not found by 200 seeds") };
        println!("{bug}: found by the job of seed {first}: {message}");
        assert!(message.contains("victim: "), "{bug}: it is no program that has found it");
    }
}

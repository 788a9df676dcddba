//! Every parser of what comes from outside, with damaged inputs: no panic, and no more memory than is stated for an input
//! of that size. `cargo xtask fuzz` looks for inputs that are worse, and those are kept in `seeds/`.

#![allow(clippy::unwrap_used)]

mod sys;

use ckptbpf::fuzz::{TARGETS, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngSeed, TestRunner};
use std::path::Path;

/// Two of three inputs are damaged seeds. Targets that write files get fewer.
const CASES: u32 = 10_000;
const CASES_OF_FILES: u32 = 1_000;

fn cases(target: &Target) -> ProptestConfig {
    let seed = std::env::var("CKPTBPF_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let cases = if ["chain", "generation"].contains(&target.name) { CASES_OF_FILES } else { CASES };
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Runs it, and says so where it took more than it may.
fn run(target: &Target, bytes: &[u8]) -> Result<(), TestCaseError> {
    let (always, a_byte) = target.memory;
    let most = always + a_byte * bytes.len();
    let held = sys::most_held(|| (target.run)(bytes));
    prop_assert!(held <= most, "{}: {held} bytes for {} of input, {most} at most", target.name, bytes.len());
    Ok(())
}

/// One way to damage an input.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, Index),
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
    /// An integer of 1, 2, 4 or 8 bytes becomes one at the edge of what there is.
    Extreme(Index, u32, u64),
    /// So do the digits there.
    Digits(Index, u64),
    /// What another seed has from there on.
    Splice(Index, Index),
}

fn extreme() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 52, i64::MAX as u64, u64::MAX];
    prop_oneof![proptest::sample::select(edges.to_vec()), any::<u64>()]
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<Index>;
    prop_oneof![
        3 => (place(), any::<u8>()).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => place().prop_map(Damage::Cut),
        1 => (place(), place()).prop_map(|(from, to)| Damage::Remove(from, to)),
        1 => (place(), place()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        1 => (place(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        3 => (place(), 0..4u32, extreme()).prop_map(|(at, size, value)| Damage::Extreme(at, size, value)),
        2 => (place(), extreme()).prop_map(|(at, value)| Damage::Digits(at, value)),
        1 => (place(), place()).prop_map(|(at, from)| Damage::Splice(at, from)),
    ]
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>, other: &[u8]) {
    let len = bytes.len();
    let place = |index: &Index| index.index(len + 1);
    let range = |a: &Index, b: &Index| {
        place(a).min(place(b))..place(a).max(place(b)).min(place(a).min(place(b)) + 512)
    };
    match damage {
        Damage::Flip(at, bit) if len > 0 => bytes[at.index(len)] ^= 1 << (bit % 8),
        Damage::Flip(..) => {}
        Damage::Cut(at) => bytes.truncate(place(at)),
        Damage::Remove(from, to) => drop(bytes.drain(range(from, to))),
        Damage::Repeat(from, to) => {
            let part = bytes[range(from, to)].to_vec();
            bytes.splice(place(to)..place(to), part);
        }
        Damage::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
        Damage::Extreme(at, size, value) => {
            let end = (place(at) + (1 << size)).min(len);
            let new = value.to_le_bytes();
            bytes[place(at)..end].iter_mut().zip(new).for_each(|(byte, new)| *byte = new);
        }
        Damage::Digits(at, value) => {
            let is_digit = |byte: &&u8| byte.is_ascii_digit();
            let start = bytes[place(at)..].iter().take_while(|byte| !is_digit(byte)).count() + place(at);
            let count = bytes[start.min(len)..].iter().take_while(is_digit).count();
            bytes.splice(start..start + count, value.to_string().into_bytes());
        }
        Damage::Splice(at, from) => {
            bytes.truncate(place(at));
            bytes.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
    }
}

/// Damages the seeds of a target, several times each.
fn damaged(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty() && seeds.iter().any(|seed| !seed.is_empty()), "{name} has no seed");
    for seed in &seeds {
        run(target, seed).unwrap();
    }
    let nothing = vec(any::<u8>(), 0..400).prop_map(|bytes| (bytes, Vec::new()));
    let seed = proptest::sample::select(seeds.clone());
    let changed = (seed.clone(), seed, vec(damage(), 1..6)).prop_map(|(mut bytes, other, all)| {
        all.iter().for_each(|damage| apply(damage, &mut bytes, &other));
        (bytes, all)
    });
    let input = prop_oneof![1 => nothing, 2 => changed];
    TestRunner::new(cases(target)).run(&input, |(bytes, _)| run(target, &bytes)).unwrap();
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            damaged(stringify!($name));
        })*

        #[test]
        fn each_target_is_tested() {
            let tested = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(tested));
        }
    };
}

targets! {
    header footer block index summary generation chain metadata
    proc_stat proc_status proc_limits proc_timers proc_maps proc_fdinfo proc_words proc_mountinfo proc_syscall proc_net
    proc_cpuinfo tcp_info keyring_text sock_diag
    bpf_events bpf_rows bpf_offsets
    job_json registry request reply names arguments slurm daemon_request front_message front_command_line told_rows
    dmtcp_pointer dmtcp_state dmtcp_words
}

/// What was found once: `seeds/TARGET/WHAT`.
#[test]
fn what_was_found_is_not_found_again() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    let mut count = 0;
    for target in TARGETS {
        for seed in std::fs::read_dir(all.join(target.name)).into_iter().flatten() {
            let bytes = std::fs::read(seed.unwrap().path()).unwrap();
            run(target, &bytes).unwrap();
            count += 1;
        }
    }
    assert!(count > 0, "no seeds in {}", all.display());
}

//! `cargo xtask soak`: the integration tests again and again, with fresh seeds, on a machine that may be busy, and with
//! the sizes and repetitions that would take too long in CI; at the end, once, jobs as services of a machine with systemd.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::cmd::{self, cargo, step};
use crate::counts::Counts;
use crate::load::Load;
use crate::{setup, support, test, vm_test};

/// A busy machine is this much slower before a test may call it a failure.
const BUSY_SCALE: u32 = 6;
const IDLE_SCALE: u32 = 2;

/// What CI has less of, and the first round has: kills of the pager while it fills, and the size of the lazy restarts, in
/// MiB; a restart from every generation of a gigabyte; kills before single system calls; programs as they are packaged; jobs that go on
/// with a program of DMTCP's scripts.
/// Seeds come from `--seeds`.
const FULL_SIZE: &[(&str, &str)] = &[
    ("CKPTBPF_LAZY_KILLS", "200"),
    ("CKPTBPF_LAZY_MIB", "1024"),
    ("CKPTBPF_EVERY_GENERATION", "1"),
    ("CKPTBPF_KILLS", "100"),
    ("CKPTBPF_PROGRAMS", "1"),
    ("CKPTBPF_RELAUNCHES", "5"),
];

#[derive(clap::Args)]
pub struct Args {
    /// How many times
    #[arg(long, default_value_t = 10)]
    repeat: u32,
    /// With a load on processor, memory and disk beside the tests
    #[arg(long)]
    busy: bool,
    /// Begin no further round after this many minutes, whatever --repeat says
    #[arg(long)]
    minutes: Option<u64>,
    /// Seeds of random operations in the first round; a thousand take about five minutes
    #[arg(long, default_value_t = 1000)]
    seeds: u32,
    /// Only the tests with one of these in their name
    filters: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    step("setup");
    setup::run(&setup::Args::default())?;
    setup::programs()?;
    test::build()?;
    if args.filters.is_empty() {
        planted_bugs()?;
    }
    let begin = Instant::now();
    let load = if args.busy { Some(Load::begin()?) } else { None };
    let mut total = Counts::default();
    let seeds = args.seeds.to_string();
    let full_size = [FULL_SIZE, &[("CKPTBPF_RANDOM_SEEDS", &seeds)]].concat();
    let mut rounds = 0;
    let is_over = |rounds: u32| {
        let is_late = args.minutes.is_some_and(|limit| begin.elapsed() >= Duration::from_secs(60 * limit));
        // One round there is, however short the time.
        rounds > 0 && (rounds >= args.repeat || is_late)
    };
    while !is_over(rounds) {
        rounds += 1;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        step(&format!("round {rounds} of {}, CKPTBPF_SEED={seed}", args.repeat));
        let (counts, results) = test::run_tests(&test::Selection {
            filters: &args.filters,
            integration: true,
            timeout_scale: Some(if args.busy { BUSY_SCALE } else { IDLE_SCALE }),
            seed: Some(seed),
            environment: if rounds == 1 { &full_size } else { &[] },
        })?;
        println!("round {rounds}, CKPTBPF_SEED={seed}: {counts}");
        for name in &counts.failures {
            println!("failed: {name}: CKPTBPF_SEED={seed} cargo xtask test {}", function(name));
        }
        total.add(counts);
        // What CI skips, such as large programs, runs here only.
        if rounds == 1 && args.filters.is_empty() {
            for row in support::contradicted(&results)? {
                println!("failed: the support table: {row}");
                total.failed += 1;
            }
        }
    }
    drop(load);
    let runs = total.passed + total.failed + total.skips;
    let tests = runs / rounds;
    let busy = if args.busy { " beside a load" } else { "" };
    println!("\nsoak: {tests} tests x {rounds} rounds = {runs} runs{busy}, {} s", begin.elapsed().as_secs());
    if vm_test::is_wanted(&args.filters, vm_test::SYSTEMD)
        && let Err(error) = vm_test::with_systemd()
    {
        let name = format!("cargo xtask vm-test --filter {}", vm_test::SYSTEMD);
        println!("{name}: {error:#}");
        total.failures.push(name);
        total.failed += 1;
    }
    test::conclude(&total)
}

/// Builds ckptbpf with bugs in it, under another name, and has each of them found.
fn planted_bugs() -> Result<()> {
    step("planted bugs");
    let build =
        ["build", "--release", "-p", "ckpt-user", "--features", "planted-bugs", "--bin", "ckptbpf-planted"];
    cmd::run(&mut cargo(&build))?;
    let mut test = cargo(&["test", "--release", "-p", "ckpt-tests"]);
    test.args(["random_ops", "paged", "dmtcp_names"].iter().flat_map(|file| ["--test", *file]));
    cmd::run(test.args(["--", "--nocapture", "planted_bugs"]).env("CKPTBPF_PLANTED", "1"))
}

/// The part of a test's name that selects it: `ckpt-tests::file function`, `crate::module::function`.
fn function(name: &str) -> &str {
    name.rsplit([' ', ':']).next().unwrap_or(name)
}

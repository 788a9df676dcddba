//! `cargo xtask soak`: the integration tests again and again, with fresh seeds, on a machine that may be busy.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::cmd::step;
use crate::counts::Counts;
use crate::load::Load;
use crate::{setup, test};

/// A busy machine is this much slower before a test may call it a failure.
const BUSY_SCALE: u32 = 6;
const IDLE_SCALE: u32 = 2;

#[derive(clap::Args)]
pub struct Args {
    /// How many times
    #[arg(long, default_value_t = 10)]
    repeat: u32,
    /// With a load on processor, memory and disk beside the tests
    #[arg(long)]
    busy: bool,
    /// Begin no further round after this many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Only the tests with this in their name
    filter: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    step("setup");
    setup::run(&setup::Args::default())?;
    test::build()?;
    let begin = Instant::now();
    let load = if args.busy { Some(Load::begin()?) } else { None };
    let mut total = Counts::default();
    let mut rounds = 0;
    let in_time = || args.minutes.is_none_or(|limit| begin.elapsed() <= Duration::from_secs(60 * limit));
    while rounds < args.repeat && in_time() {
        rounds += 1;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        step(&format!("round {rounds} of {}, CKPTBPF_SEED={seed}", args.repeat));
        total.add(test::run_tests(&test::Selection {
            filter: args.filter.as_deref(),
            integration: true,
            timeout_scale: Some(if args.busy { BUSY_SCALE } else { IDLE_SCALE }),
            seed: Some(seed),
        })?);
        println!("after {rounds} rounds: {total}");
    }
    drop(load);
    let busy = if args.busy { ", busy" } else { "" };
    println!("\nsoak: {rounds} rounds in {} s{busy}", begin.elapsed().as_secs());
    test::conclude(&total)
}

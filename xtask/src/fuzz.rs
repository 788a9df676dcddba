//! `cargo xtask fuzz`: libFuzzer over each parser of what comes from outside, from the seeds that the tests have too.
//!
//! The compiler's own coverage pass is enough for that: no sanitizer, for nearly all of the code is safe Rust, and no
//! other toolchain. What it finds is kept in `fuzz/artifacts`; mended, it belongs to `ckpt-user/tests/fuzz/seeds`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd::{self, cargo, step};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where the tests keep what was found.
const FOUND: &str = "ckpt-user/tests/fuzz/seeds";
/// The pass as cargo-fuzz sets it up.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

#[derive(clap::Args)]
pub struct Args {
    /// How long all targets take together
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only these; all if there is none
    targets: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    step("cargo build, with coverage");
    let mut build = cargo(&["build", "--release", "--target", TARGET, "--manifest-path", "fuzz/Cargo.toml"]);
    cmd::run(build.env("RUSTFLAGS", FLAGS))?;
    let names = if args.targets.is_empty() { known()? } else { args.targets.clone() };
    let seconds = (60 * args.minutes / names.len().max(1) as u64).max(1);
    let mut failed = Vec::new();
    for name in &names {
        step(&format!("{name}, {seconds} s"));
        if fuzz(name, seconds).is_err() {
            failed.push(name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("found something: {}; see fuzz/artifacts", failed.join(", "));
    }
    Ok(())
}

fn binary() -> Command {
    Command::new(format!("fuzz/target/{TARGET}/release/parsers"))
}

/// What the binary has.
fn known() -> Result<Vec<String>> {
    let list = cmd::output(binary().env("CKPTBPF_FUZZ", "list"))?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn fuzz(name: &str, seconds: u64) -> Result<()> {
    let (corpus, artifacts) = (format!("fuzz/corpus/{name}"), format!("fuzz/artifacts/{name}/"));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("making {dir}"))?;
    }
    let mut command = binary();
    command.env("CKPTBPF_FUZZ", name).env("CKPTBPF_SEEDS", &corpus);
    command.args(["-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1", "-verbosity=0"]);
    command.args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={artifacts}"), corpus]);
    let found = format!("{FOUND}/{name}");
    if Path::new(&found).is_dir() {
        command.arg(found);
    }
    cmd::run(&mut command)
}

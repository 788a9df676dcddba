//! `cargo xtask test`: the one command that CI and a reader of the README run.
//!
//! Cheap checks first; the last line says how many tests passed, failed and were skipped, and skips are named.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd::{self, cargo, step};
use crate::counts::Counts;
use crate::results::Results;
use crate::{build_ebpf, setup, support, tidy};

#[derive(clap::Args)]
pub struct Args {
    /// Do not look for missing packages first
    #[arg(long)]
    no_setup: bool,
    /// Only the tests with one of these in their name, and no checks
    filters: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.no_setup {
        step("setup");
        setup::run(&setup::Args::default())?;
    }
    if args.filters.is_empty() {
        checks()?;
    }
    build()?;
    step("tests");
    let (counts, results) = run_tests(&Selection { filters: &args.filters, ..Selection::default() })?;
    if !args.filters.is_empty() {
        return conclude(&counts);
    }
    step("support table");
    results.keep()?;
    let table = support::check(&results);
    conclude(&counts)?;
    table
}

/// What must hold before anything runs.
fn checks() -> Result<()> {
    step("cargo fmt --check");
    cmd::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("tidy");
    tidy::run()?;
    step("build-ebpf --check");
    build_ebpf::run(build_ebpf::Args { install: false, check: true })?;
    step("cargo clippy");
    cmd::run(&mut cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// The programs that the integration tests run.
pub fn build() -> Result<()> {
    step("cargo build --release");
    cmd::run(&mut cargo(&["build", "--release", "--workspace", "--bins"]))
}

/// Which tests to run, and how.
#[derive(Default)]
pub struct Selection<'a> {
    /// Parts of names, all tests if there is none.
    pub filters: &'a [String],
    /// The integration tests only.
    pub integration: bool,
    /// Multiplies the tests' deadlines.
    pub timeout_scale: Option<u32>,
    /// A seed for the random tests; the fixed one of CI otherwise.
    pub seed: Option<u64>,
    /// Variables that the tests look at.
    pub environment: &'a [(&'a str, &'a str)],
}

/// Runs the tests with nextest if there is one, else with cargo's own runner. All of them, after a failure too.
pub fn run_tests(selection: &Selection) -> Result<(Counts, Results)> {
    let [skips, restarts] = ["target/skips", "target/restarts"].map(Path::new);
    fs::create_dir_all("target")?;
    let mut command = runner(selection);
    for (variable, path) in [("CKPTBPF_SKIP_FILE", skips), ("CKPTBPF_RESTARTS_FILE", restarts)] {
        fs::write(path, "").with_context(|| format!("emptying {}", path.display()))?;
        command.env(variable, fs::canonicalize(path)?);
    }
    command.envs(selection.environment.iter().copied());
    if let Some(scale) = selection.timeout_scale {
        command.env("CKPTBPF_TEST_TIMEOUT_SCALE", scale.to_string());
    }
    if let Some(seed) = selection.seed {
        command.env("CKPTBPF_SEED", seed.to_string());
    }
    let (mut counts, mut results) = (Counts::default(), Results::default());
    let succeeded = cmd::watch(&mut command, |line| {
        counts.see(line);
        results.see(line);
    })?;
    let skipped = fs::read_to_string(skips)?;
    counts.see_skips(&skipped);
    results.see_skips(&skipped);
    results.see_restarts(&fs::read_to_string(restarts)?);
    if !succeeded && counts.failed == 0 {
        bail!("the test runner failed before the tests did");
    }
    Ok((counts, results))
}

fn runner(selection: &Selection) -> Command {
    let which =
        if selection.integration { &["--package", "ckpt-tests", "--tests"][..] } else { &["--workspace"] };
    let mut command = if cmd::succeeds(&mut cargo(&["nextest", "--version"])) {
        let profile = if selection.timeout_scale.is_some() { "soak" } else { "default" };
        let mut command = cargo(&["nextest", "run", "--release", "--no-fail-fast", "--no-tests", "pass"]);
        command.args(["--color", "never", "--profile", profile]).args(which);
        command
    } else {
        let mut command = cargo(&["test", "--release", "--no-fail-fast"]);
        command.args(which);
        if !selection.integration {
            command.args(["--lib", "--bins", "--tests"]);
        }
        command
    };
    // cargo's own runner takes one name before, any number after.
    command.arg("--").args(selection.filters);
    command
}

/// The closing lines; fails if a test did.
pub fn conclude(counts: &Counts) -> Result<()> {
    println!();
    for (name, reason) in &counts.skipped {
        println!("skipped: {name}: {reason}");
    }
    for (name, times) in counts.failures_by_name() {
        println!("failed: {name}{}", if times > 1 { format!(", {times} times") } else { String::new() });
    }
    println!("{counts}");
    if counts.failed > 0 {
        bail!("{} tests failed", counts.failed);
    }
    Ok(())
}

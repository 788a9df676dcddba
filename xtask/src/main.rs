//! `cargo xtask`: what a developer and CI run. One file a command.
#![forbid(unsafe_code)]

mod bench;
mod build_ebpf;
mod cmd;
mod counts;
mod demo;
mod dist;
mod fuzz;
mod load;
mod results;
mod setup;
mod soak;
mod support;
mod test;
mod tidy;
mod vm_test;

use clap::Parser;

/// ckptbpf's build and test commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Shows the main job: checkpoints, kill -9, restart, and the proof that nothing was lost
    Demo,
    /// Builds the eBPF programs that are committed beside their source
    BuildEbpf(build_ebpf::Args),
    /// Installs what is missing on a Debian or Ubuntu machine
    Setup(setup::Args),
    /// Sets up, then passes every check and test: format, lints, house rules, unit and integration tests
    Test(test::Args),
    /// Repeats the integration tests, with --busy beside a load on processor, memory and disk
    Soak(soak::Args),
    /// Measures freezes, checkpoints and what they cost, beside criu and DMTCP where they are
    Bench(bench::Args),
    /// Looks for inputs that the parsers cannot bear, by libFuzzer
    Fuzz(fuzz::Args),
    /// Writes the README's support table, as the last run of all tests has shown it
    Support,
    /// Checks the house rules that no compiler knows
    Tidy,
    /// Builds, and puts what is to be installed into target/dist, as a folder and as an archive
    Dist,
    /// Runs tests under other kernels, in virtual machines
    VmTest(vm_test::Args),
}

fn main() -> anyhow::Result<()> {
    cmd::enter_repository()?;
    match Xtask::parse() {
        Xtask::Demo => demo::run(),
        Xtask::BuildEbpf(args) => build_ebpf::run(args),
        Xtask::Setup(args) => setup::run(&args),
        Xtask::Test(args) => test::run(&args),
        Xtask::Soak(args) => soak::run(&args),
        Xtask::Bench(args) => bench::run(&args),
        Xtask::Fuzz(args) => fuzz::run(&args),
        Xtask::Support => support::run(),
        Xtask::Tidy => tidy::run(),
        Xtask::Dist => dist::run(),
        Xtask::VmTest(args) => vm_test::run(&args),
    }
}

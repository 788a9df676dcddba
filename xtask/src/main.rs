//! `cargo xtask`: what a developer runs. One file a command.
mod build_ebpf;

use clap::Parser;

/// ckptbpf's build and test commands
#[derive(Parser)]
enum Command {
    /// Build the eBPF programs that are committed beside their source
    BuildEbpf(build_ebpf::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::BuildEbpf(args) => build_ebpf::run(args),
    }
}

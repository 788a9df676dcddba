//! The `ckptbpf` command.

fn main() -> std::process::ExitCode {
    ckptbpf::cli::main()
}

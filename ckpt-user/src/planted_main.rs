//! `ckptbpf` with bugs to be found: see `planted.rs`. Not for any other use.

fn main() -> std::process::ExitCode {
    ckptbpf::cli::main()
}

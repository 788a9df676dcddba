//! Pid 1 of a box; see `ckpt_tests::sandbox`.
fn main() -> std::process::ExitCode {
    ckpt_tests::sandbox::inside::main()
}

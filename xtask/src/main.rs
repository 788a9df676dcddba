//! `cargo xtask`: what a developer runs. One file a command.
fn main() {}

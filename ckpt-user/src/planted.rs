//! Bugs to be found: what `tests/tests/random_ops.rs`, `tests/tests/paged.rs` and `cargo xtask vm-test --planted` turn on to see that
//! their programs find it; and what `tests/tests/dmtcp_names.rs` turns on to see how it ends.
//!
//! Only the binary `ckptbpf-planted` has them, which is built with the feature `planted-bugs`; in any other build [`is`] is
//! a constant, and nothing of them is compiled.

/// Whether the bug of this name is asked for by `CKPTBPF_PLANT`.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: &str) -> bool {
    std::env::var_os("CKPTBPF_PLANT").is_some_and(|asked| asked == bug)
}

/// Never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is(_bug: &str) -> bool {
    false
}

//! kernel.yama.ptrace_scope, which is the whole machine's: it is set where nobody else is.

use std::fs::{read_to_string, write};

/// Set where the tests have a machine of their own (`cargo xtask vm-test`).
const OWN_MACHINE: &str = "CKPTBPF_OWN_MACHINE";
const FILE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// The scope as it was, once this is dropped.
pub struct Scope {
    before: String,
}

impl Scope {
    /// Sets it. Not to 3, which is for good.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn set(value: u8) -> Result<Self, &'static str> {
        if std::env::var_os(OWN_MACHINE).is_none() {
            return Err("kernel.yama.ptrace_scope is the whole machine's: cargo xtask vm-test");
        }
        let before = read_to_string(FILE).map_err(|_| "this kernel has no Yama")?;
        let scope = Self { before };
        scope.change(value);
        Ok(scope)
    }

    /// Sets it to another value.
    pub fn change(&self, value: u8) {
        write(FILE, value.to_string()).expect("root sets kernel.yama.ptrace_scope");
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // The next test sets it anew.
        let _ = write(FILE, &self.before);
    }
}

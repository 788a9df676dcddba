//! The variables of this process.

use std::ffi::OsString;

/// Sets them. Only while this process has one thread.
pub fn set(variables: Vec<(&'static str, OsString)>) {
    for (name, value) in variables {
        // SAFETY: nobody else reads or writes the environment meanwhile: there is no other thread.
        unsafe { std::env::set_var(name, value) };
    }
}

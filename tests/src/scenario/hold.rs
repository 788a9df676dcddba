//! A program whose last step waits for the test: however slow the machine, no run ends before it has been killed.

use std::path::PathBuf;

use crate::sandbox::{Cmd, Sandbox};

/// The variable that names the file without which a victim does not take its last step.
pub const VARIABLE: &str = "VICTIM_HOLD";

fn file(sandbox: &Sandbox) -> PathBuf {
    sandbox.dir().join("let-go")
}

/// `program`, held before its last step until [`let_go`].
pub fn held(sandbox: &Sandbox, program: Cmd) -> Cmd {
    program.env(VARIABLE, file(sandbox).to_str().expect("a UTF-8 path"))
}

/// Lets the box's held programs end, those that are yet to be restarted too.
pub fn let_go(sandbox: &Sandbox) {
    std::fs::write(file(sandbox), "").expect("the file that lets go");
}

/// A loop in Python around `body`, `steps` long with `i` from 0, a pause of `seconds` after each; the last is held.
pub fn python_loop(steps: u32, seconds: f64, body: &str) -> String {
    let body = body.replace('\n', "\n    ");
    format!(
        "import os, select\n\
         for i in range({steps}):\n    \
             while i == {steps} - 1 and '{VARIABLE}' in os.environ and not os.path.exists(os.environ['{VARIABLE}']):\n        \
                 select.select([], [], [], 0.001)\n    \
             {body}\n    \
             select.select([], [], [], {seconds})\n"
    )
}

//! A program that goes on only when it is told to: however slow the machine, it never ends too early.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sandbox::{Cmd, Finished, Running, Sandbox};
use crate::victim_cmd;

const PATIENCE: Duration = Duration::from_secs(30);

/// A program that prints a line, and writes it to the file `f`, at its start and on each SIGUSR1; it ends with 0
/// after `steps` of them.
pub fn stepper(steps: u32) -> Cmd {
    victim_cmd("memory").args(["1", &steps.to_string(), "f", "signal"])
}

/// Signals the box's steppers, those that are yet to come too, until `is_over`.
pub fn walk_until(sandbox: &Sandbox, mut is_over: impl FnMut() -> bool) {
    sandbox.wait_for("a program to take all its steps", PATIENCE, || {
        let over = is_over();
        if !over {
            for stepper in sandbox.ps().iter().filter(|process| process.comm == "memory") {
                // It may have ended since.
                let _ = sandbox.kill(stepper.pid, Signal::SIGUSR1 as i32);
            }
        }
        over
    });
}

/// Makes a stepper that `running` supervises take all its steps, and waits for the end.
pub fn walk(sandbox: &Sandbox, running: Running<'_>) -> Finished {
    walk_until(sandbox, || running.has_ended());
    running.wait(PATIENCE)
}

/// Runs `cmd`, which starts a stepper, to the end of all steps.
pub fn walk_through(sandbox: &Sandbox, cmd: impl Into<Cmd>) -> Finished {
    walk(sandbox, sandbox.spawn(cmd))
}

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
                if waits_for_the_signal(sandbox, stepper.pid) {
                    // It may have ended since.
                    let _ = sandbox.kill(stepper.pid, Signal::SIGUSR1 as i32);
                }
            }
        }
        over
    });
}

/// Before it has blocked the signal, it would end by it. The call that waits for one unblocks it.
fn waits_for_the_signal(sandbox: &Sandbox, pid: i32) -> bool {
    const RT_SIGTIMEDWAIT: &str = "128 ";
    let read =
        |name| std::fs::read_to_string(sandbox.root().join(format!("proc/{pid}/{name}"))).unwrap_or_default();
    if read("syscall").starts_with(RT_SIGTIMEDWAIT) {
        return true;
    }
    let status = read("status");
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = blocked.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    blocked.is_some_and(|mask| mask & (1 << (Signal::SIGUSR1 as i32 - 1)) != 0)
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

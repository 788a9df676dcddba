//! That a program goes on, by the lines that it prints, and the end of everybody in a box.

use nix::sys::signal::Signal;

use super::{Job, PATIENCE};
use crate::sandbox::{Running, Sandbox};

/// Waits for some more steps of a program that prints a line in each.
pub fn steps(sandbox: &Sandbox, running: &Running<'_>) {
    let lines = || running.stdout().iter().filter(|&&byte| byte == b'\n').count();
    let then = lines();
    sandbox.wait_for("the program to go on", PATIENCE * 2, || {
        assert!(!running.has_ended(), "it has ended: {}", running.stderr());
        lines() > then + 3
    });
}

/// That the whole lines which a job has printed are 1, 2, 3 and so on.
pub fn are_counted(job: &Job<'_>) {
    let printed = String::from_utf8(job.stdout()).expect("numbers");
    let whole = printed.rfind('\n').map_or("", |end| &printed[..=end]);
    let expected: String = (1..=whole.lines().count()).map(|step| format!("{step}\n")).collect();
    assert_eq!(whole, expected);
}

/// kill -9 of everybody in the box, and the end of `running`, which is one of them.
pub fn kill_all(sandbox: &Sandbox, running: Running<'_>) {
    kill_all_but(sandbox, None);
    running.wait(PATIENCE);
}

/// As often as it takes: a process may be started between the look and the kill.
pub(super) fn kill_all_but(sandbox: &Sandbox, spared: Option<i32>) {
    sandbox.wait_for("everybody to be dead", PATIENCE, || {
        let mut left = sandbox.ps();
        left.retain(|process| Some(process.pid) != spared);
        for process in &left {
            let _ = sandbox.kill(process.pid, Signal::SIGKILL as i32);
        }
        left.is_empty()
    });
}

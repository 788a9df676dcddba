//! A program that runs in the box, and one that has ended there.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Cmd, Sandbox};

/// A program started in the box. It is not killed when this is dropped: a test that forgets it fails.
pub struct Running<'b> {
    sandbox: &'b Sandbox,
    serial: u64,
    /// Its process id, and that of its group, inside the box.
    pub pid: i32,
    stdout: PathBuf,
    stderr: PathBuf,
    shown: String,
}

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    shown: String,
}

impl<'b> Running<'b> {
    pub(super) fn new(sandbox: &'b Sandbox, serial: u64, pid: i32, io: &Path, cmd: &Cmd) -> Self {
        let (stdout, stderr) = (cmd.stdout_file(serial, io), io.join(format!("{serial}.err")));
        Self { sandbox, serial, pid, stdout, stderr, shown: cmd.shown() }
    }

    /// Its process id as the test process sees it; `None` once it is gone.
    pub fn outside_pid(&self) -> Option<i32> {
        self.sandbox.outside_pid(self.pid)
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: Signal) {
        let _ = self.sandbox.kill(self.pid, signal as i32);
    }

    /// Sends its process group a signal.
    pub fn kill_group(&self, signal: Signal) {
        let _ = self.sandbox.kill(-self.pid, signal as i32);
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.sandbox.channel.has_exited(self.serial)
    }

    /// The file that collects its standard output.
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> Vec<u8> {
        std::fs::read(&self.stdout).unwrap_or_default()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits for its end; fails with what it printed last after `deadline` (scaled).
    pub fn wait(self, deadline: Duration) -> Finished {
        match self.sandbox.channel.exited(self.serial, deadline) {
            Ok(status) => Finished {
                status: ExitStatus::from_raw(status),
                stdout: self.stdout(),
                stderr: std::fs::read(&self.stderr).unwrap_or_default(),
                shown: self.shown,
            },
            Err(why) => panic!(
                "box {}: waiting for the end of {}: {why}\n{}\nstdout: {}\nstderr: {}",
                self.sandbox.name,
                self.shown,
                self.sandbox.ps_text(),
                tail(&self.stdout()),
                tail(self.stderr().as_bytes()),
            ),
        }
    }

    /// Waits until its standard output holds `text`.
    pub fn wait_for_output(&self, text: &str, deadline: Duration) {
        self.sandbox.wait_for(&format!("{text:?} from {}", self.shown), deadline, || {
            // First: what it has printed before its end is there then.
            let ended = self.has_ended();
            let printed = String::from_utf8_lossy(&self.stdout()).contains(text);
            assert!(printed || !ended, "{} ended before {text:?}: {}", self.shown, tail(&self.stdout()));
            printed
        });
    }
}

impl Finished {
    /// The exit status, or 128 + the signal, as a shell says it.
    pub fn code(&self) -> i32 {
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }

    /// Fails, with what was printed, unless the program ended with `code`.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "status of {}\nstdout: {}\nstderr: {}",
            self.shown,
            tail(&self.stdout),
            tail(&self.stderr)
        );
        self
    }

    /// Fails, with what was printed, unless the program ended with 0.
    pub fn success(self) -> Self {
        self.expect_code(0)
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// The last lines, for a message.
fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(2000);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

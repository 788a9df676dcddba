//! One virtual machine, from its start to its verdict.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A machine that says nothing for so long says nothing any more: its first process ends tests after ten minutes.
const SILENCE: Duration = Duration::from_secs(660);

/// What became of the tests, and of the machine.
pub struct Results {
    pub tests: Vec<(String, Outcome)>,
    /// Why the machine counts as failed, whatever its tests say.
    pub wrong: Option<String>,
    pub took: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// What a machine is started with.
pub struct Machine<'a> {
    pub vmlinux: &'a Path,
    pub initrd: &'a Path,
    /// A raw image with a file system.
    pub disk: Option<&'a Path>,
}

fn qemu(machine: &Machine, console: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    // The processor is emulated: unmodified kernels do not run everywhere where there is a /dev/kvm.
    command.args(["-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "max", "-smp", "2", "-m", "1536"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-serial", console]);
    command.arg("-kernel").arg(machine.vmlinux).arg("-initrd").arg(machine.initrd);
    if let Some(disk) = machine.disk {
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
    }
    command.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    command
}

/// A shell on this terminal; `exit` ends the machine.
pub fn shell(machine: &Machine) -> Result<()> {
    let status = qemu(machine, "mon:stdio").status().context("starting qemu-system-x86_64")?;
    match status.code() {
        Some(code) if code % 2 == 1 => Ok(()),
        _ => bail!("the machine has ended without a verdict: {status}"),
    }
}

/// Runs a machine to its end and writes down what it prints.
pub fn run(name: &str, machine: &Machine, console: &Path) -> Result<Results> {
    let begin = Instant::now();
    let mut command = qemu(machine, "stdio");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = Watched(command.spawn().context("starting qemu-system-x86_64")?);
    let output = child.0.stdout.take().context("what the machine prints")?;
    let mut log = File::create(console).with_context(|| console.display().to_string())?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut report = Report::default();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                if let Some(shown) = report.see(&line) {
                    println!("{name:>8}: {shown}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                report.wrong = Some(format!("has said nothing for {} s", SILENCE.as_secs()));
                break;
            }
        }
    }
    if report.wrong.is_none() {
        let status = child.0.wait()?;
        report.wrong = match (status.code(), report.has_verdict) {
            (Some(1), true) => None,
            (Some(code), true) if code % 2 == 1 && report.has_failed() => None,
            (Some(code), _) if code % 2 == 1 => Some(format!("has ended with {}", code / 2)),
            _ => Some("has ended without a verdict".into()),
        };
    }
    if let Some(wrong) = &report.wrong {
        println!("{name:>8}: {wrong}");
    }
    Ok(Results { tests: report.tests, wrong: report.wrong, took: begin.elapsed() })
}

/// Ends with its watcher.
struct Watched(Child);

impl Drop for Watched {
    fn drop(&mut self) {
        // It has ended already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
struct Report {
    tests: Vec<(String, Outcome)>,
    wrong: Option<String>,
    has_verdict: bool,
}

impl Report {
    /// Takes a line; what to show of it.
    fn see(&mut self, line: &str) -> Option<String> {
        if line.contains("Kernel panic") || line.contains("BUG:") || line.contains("WARNING: CPU") {
            self.wrong = Some(format!("the kernel says: {}", line.trim()));
            return None;
        }
        let (kind, rest) = line.strip_prefix("VM-TEST ")?.split_once(' ')?;
        let outcome = match kind {
            "kernel" => return Some(rest.to_owned()),
            "error" => {
                self.wrong = Some(rest.to_owned());
                return None;
            }
            "verdict" => {
                self.has_verdict = true;
                return Some(rest.to_owned());
            }
            "ok" => Outcome::Passed,
            "failed" => Outcome::Failed,
            "skipped" => Outcome::Skipped(rest.split_once(": ").map_or(rest, |(_, why)| why).to_owned()),
            _ => return None,
        };
        // `BINARY FUNCTION`, and how long it took.
        let name: Vec<&str> = rest.splitn(3, ' ').take(2).collect();
        self.tests.push((name.join(" "), outcome));
        Some(format!("{kind} {rest}"))
    }

    fn has_failed(&self) -> bool {
        self.tests.iter().any(|(_, outcome)| *outcome == Outcome::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_machine_are_understood() {
        let mut report = Report::default();
        for line in [
            "VM-TEST began count a",
            "VM-TEST ok count a 1.0 s",
            "noise",
            "VM-TEST failed dirty b::c 2.0 s: exit status 101",
        ] {
            report.see(line);
        }
        report.see("VM-TEST skipped lazy d 0.1 s: no such thing: here");
        let outcome = |n: usize| report.tests[n].1.clone();
        assert_eq!(report.tests[1].0, "dirty b::c");
        assert_eq!((outcome(0), outcome(1)), (Outcome::Passed, Outcome::Failed));
        assert_eq!(outcome(2), Outcome::Skipped("no such thing: here".into()));
        assert!(report.has_failed() && !report.has_verdict);
        report.see("VM-TEST verdict 1 passed, 1 failed, 1 skipped");
        assert!(report.has_verdict && report.wrong.is_none());
        report.see("[    1.0] Kernel panic - not syncing");
        assert!(report.wrong.is_some());
    }
}

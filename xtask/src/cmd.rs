//! Running other programs: announced, and a failure names the command.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Every command works from the repository's root, wherever it was called from.
pub fn enter_repository() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository's root")?;
    std::env::set_current_dir(root).with_context(|| format!("entering {}", root.display()))
}

/// A heading that stands out between the output of the steps.
pub fn step(what: &str) {
    println!("\n==> {what}");
}

/// The `cargo` that runs us.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// A program that was built for release, wherever cargo puts those.
pub fn built(name: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(std::env::current_dir()?.join(target).join("release").join(name))
}

/// A command that becomes the one whose words are appended to it, without the descriptors that we have inherited.
///
/// A pipe that a terminal, an editor or a build tool has left open in us leads out of a program, and ckptbpf would
/// refuse to save it, rightly.
pub fn without_inherited() -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{} exec \"$@\"", close_inherited()), "bash"]);
    command
}

/// Shell code that closes what we have inherited above standard error.
fn close_inherited() -> String {
    let own = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = own.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|&number| number > 2).map(|number| format!("exec {number}>&-;")).collect()
}

/// A child that does not outlive this. Ending ckptbpf with SIGTERM ends its program, too.
pub struct Held(pub Child);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let id = self.0.id().to_string();
            succeeds(Command::new("kill").arg(&id));
            // Waiting for what does not end would hide the error that brought us here.
            let until = Instant::now() + Duration::from_secs(5);
            while self.0.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Runs a command to its end; its failure is ours.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// What a command prints; its failure is ours.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a command can be run and succeeds, in silence.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Runs a command, passes on each line of both its outputs and shows it to `look`; whether it succeeded.
pub fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool> {
    let shown = shown(command);
    let (lines, pipe) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(pipe.try_clone()?).stderr(pipe);
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    // The command still holds the writing end: without it in here the last line is followed by end of file.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(lines).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        look(&line);
    }
    Ok(child.wait()?.success())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_a_standard_stream_is_closed() {
        let code = close_inherited();
        assert!(["exec 0>", "exec 1>", "exec 2>"].iter().all(|one| !code.contains(one)), "{code}");
    }
}

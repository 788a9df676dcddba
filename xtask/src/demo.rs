//! `cargo xtask demo`: the main job before one's eyes, on a program that knows nothing of it.
//!
//! ```text
//! build ─▶ undisturbed run (beside) ─────────────────────────────────────────────────▶ compare, byte for byte
//!      └─▶ launch -i 1 ─▶ list ─▶ kill -9 of both ─▶ restart --lazy ─▶ runs to its end ─▶ ┘
//! ```
//! Everything is in a folder under the system's temporary one and goes with it, however this ends. What the program
//! prints reaches the terminal through a pipe: a restart cuts back the files that a program had written, and the
//! file that somebody keeps this text in is none of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cmd::{self, Held, step};
use crate::{setup, test};

/// Some twelve seconds of counting.
const COUNT_TO: &str = "3000";
/// Checkpoints to wait for before the kill.
const BEFORE_KILL: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);
const OUTPUT: &str = "count.txt";
const IMAGES: &str = "images";

pub fn run() -> Result<()> {
    step("setting up");
    setup::to_build()?;
    // As the tests do, so that nothing is built twice.
    test::build()?;
    let built = Instant::now();
    let stage = Stage::set(&std::env::current_dir()?)?;
    stage.require_kernel()?;
    let result = stage.perform();
    drop(stage);
    result?;
    println!("It took {} s; its folder is removed.", built.elapsed().as_secs());
    Ok(())
}

/// The folder of the demonstration, the binary, and whether sudo is needed.
struct Stage {
    folder: PathBuf,
    ckptbpf: PathBuf,
    sudo: bool,
}

impl Stage {
    fn set(repository: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("ckptbpf-demo-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let is_root = cmd::output(Command::new("id").arg("-u"))?.trim() == "0";
        let stage = Self { folder, ckptbpf: cmd::built("ckptbpf")?, sudo: !is_root };
        for part in ["undisturbed", "run"] {
            fs::create_dir(stage.folder.join(part))?;
        }
        let program = stage.folder.join("count");
        let source = repository.join("examples/count.c");
        cmd::run(Command::new("gcc").args(["-O2", "-o"]).arg(&program).arg(source))?;
        Ok(stage)
    }

    /// A command with what ckptbpf needs to run: root's rights, and no descriptors of whoever called us.
    fn command(&self, program: &Path) -> Command {
        let mut command = cmd::without_inherited();
        if self.sudo {
            command.args(["sudo", "--preserve-env=XDG_RUNTIME_DIR"]);
        }
        // Entries of live jobs go into the folder, too.
        command.arg(program).current_dir(self.folder.join("run")).env("XDG_RUNTIME_DIR", &self.folder);
        command
    }

    fn ckptbpf(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.ckptbpf);
        command.args(args);
        command
    }

    /// `ckptbpf check` says what is missing on this machine and what to do about it.
    fn require_kernel(&self) -> Result<()> {
        let check = self.ckptbpf(&["check"]).stdin(Stdio::null()).output()?;
        if !check.status.success() {
            println!("{}", String::from_utf8_lossy(&check.stdout));
            bail!("ckptbpf does not work on this machine; see the lines marked `missing` above");
        }
        Ok(())
    }

    fn perform(&self) -> Result<()> {
        step("a run that nobody disturbs, for comparison, beside all that follows");
        say("count count.txt 3000");
        let mut undisturbed = Command::new(self.folder.join("count"));
        undisturbed.args([OUTPUT, COUNT_TO]).current_dir(self.folder.join("undisturbed"));
        let mut undisturbed = Held(undisturbed.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);

        step("the same program, with a checkpoint every second");
        let mut job =
            self.show(&["launch", "-v", "-i", "1", "-d", IMAGES, "--", "../count", OUTPUT, COUNT_TO])?;
        self.wait_for_checkpoints(&mut job)?;
        let status = self.status()?;
        say(&format!("ckptbpf list {IMAGES}"));
        let list = cmd::output(&mut self.ckptbpf(&["list", IMAGES]))?;
        list.lines().for_each(|line| println!("    {line}"));

        step("kill -9 of the program and of ckptbpf, at once");
        let ids = [id_of(&status, "pid")?, id_of(&status, "supervisor_pid")?];
        say(&format!("kill -9 {} {}", ids[0], ids[1]));
        cmd::run(self.command(Path::new("kill")).arg("-9").args(&ids))?;
        let ended = job.end()?;
        ensure!(!ended.success(), "the job has survived kill -9");
        wait_until_reaped(&ids[0]);
        let left = fs::read(self.folder.join("run").join(OUTPUT))?;
        println!("Both are dead. {OUTPUT} ends in the middle: {} lines.", lines(&left));

        step("restart from the last checkpoint");
        let job = self.show(&["restart", "--lazy", "--json", "-v", IMAGES])?;
        let ended = job.end()?;
        ensure!(ended.success(), "the restarted program has ended with {ended}");

        step("proof");
        ensure!(undisturbed.0.wait()?.success(), "the undisturbed run has failed");
        self.compare()
    }

    /// Runs a verb as a person would, its output shown line by line.
    fn show(&self, args: &[&str]) -> Result<Shown> {
        let typed: Vec<&str> = args.iter().map(|arg| arg.strip_prefix("../").unwrap_or(arg)).collect();
        say(&format!("{}ckptbpf {}", if self.sudo { "sudo " } else { "" }, typed.join(" ")));
        let mut command = self.ckptbpf(args);
        let (lines, pipe) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(pipe.try_clone()?).stderr(pipe);
        let child = command.spawn().context("starting ckptbpf")?;
        drop(command);
        let reader = thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                println!("    {line}");
                tell_restart(&line);
            }
        });
        Ok(Shown { child: Held(child), reader: Some(reader) })
    }

    fn wait_for_checkpoints(&self, job: &mut Shown) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.checkpoints() < BEFORE_KILL {
            if let Some(status) = job.child.0.try_wait()? {
                bail!("ckptbpf has ended ({status}) before its checkpoint number {BEFORE_KILL}");
            }
            ensure!(Instant::now() < until, "no {BEFORE_KILL} checkpoints within {} s", PATIENCE.as_secs());
            thread::sleep(Duration::from_millis(100));
        }
        // Into the next interval, so that the program has counted on since its last checkpoint.
        thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    /// Complete checkpoints so far; none while there is no directory.
    fn checkpoints(&self) -> usize {
        let listed = cmd::output(&mut self.ckptbpf(&["list", "--json", IMAGES])).unwrap_or_default();
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap_or_default();
        listed.iter().filter(|one| one["complete"] == true).count()
    }

    fn status(&self) -> Result<Value> {
        let status = cmd::output(&mut self.ckptbpf(&["status", "--json", IMAGES]))?;
        serde_json::from_str(&status).context("reading `ckptbpf status --json`")
    }

    /// Byte for byte; a difference is an error that says where.
    fn compare(&self) -> Result<()> {
        let expected = fs::read(self.folder.join("undisturbed").join(OUTPUT))?;
        let written = fs::read(self.folder.join("run").join(OUTPUT))?;
        let last = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).lines().last().map(str::to_owned).unwrap_or_default()
        };
        for (name, bytes) in [("undisturbed", &expected), ("killed and restarted", &written)] {
            println!(
                "{name:>22}: {} lines, {} bytes, XXH3 {:032x}, last line `{}`",
                lines(bytes),
                bytes.len(),
                xxhash_rust::xxh3::xxh3_128(bytes),
                last(bytes)
            );
        }
        if let Some(at) = difference(&expected, &written) {
            bail!("the files differ from byte {at} on: something was lost");
        }
        ensure!(!written.is_empty(), "the program has written nothing");
        println!("The two files are the same, byte for byte: nothing was lost, nothing done twice.");
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            // Under sudo some of it may be root's.
            let removed = self.sudo
                && cmd::succeeds(Command::new("sudo").args(["-n", "rm", "-rf", "--"]).arg(&self.folder));
            if !removed {
                eprintln!("{}: {error}", self.folder.display());
            }
        }
    }
}

/// A running job whose output is shown.
struct Shown {
    child: Held,
    reader: Option<JoinHandle<()>>,
}

impl Shown {
    fn end(mut self) -> Result<ExitStatus> {
        let status = self.child.0.wait()?;
        // All of its output, before anything else is said.
        let _ = self.reader.take().map(JoinHandle::join);
        Ok(status)
    }
}

/// The line that `restart --json` prints once the program runs, in words.
fn tell_restart(line: &str) {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return };
    let fields = ["resume_us", "pages_eager", "pages_lazy"].map(|name| value[name].as_u64());
    let [Some(resume_us), Some(eager), Some(lazy)] = fields else { return };
    let resume_ms = resume_us as f64 / 1000.0;
    println!(
        "It runs again, {resume_ms:.1} ms after the command: {eager} pages of memory in place, {lazy} to come."
    );
}

fn id_of(status: &Value, field: &str) -> Result<String> {
    let id = status[field].as_i64().filter(|&id| id > 1);
    Ok(id.with_context(|| format!("`ckptbpf status` names no {field}: {status}"))?.to_string())
}

/// A restart takes the same process id and waits for a dead program that still holds it, until the system's first
/// process takes note of the death. Some do so within microseconds, some only every few seconds.
fn wait_until_reaped(id: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while Path::new("/proc").join(id).exists() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
}

fn say(command: &str) {
    println!("$ {command}");
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The first byte in which they differ.
fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    Some(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        assert_eq!(difference(b"1 a\n2 b\n", b"1 a\n2 b\n"), None);
        assert_eq!(difference(b"1 a\n2 b\n", b"1 a\n2 c\n"), Some(6));
        assert_eq!(difference(b"1 a\n2 b\n", b"1 a\n"), Some(4));
        assert_eq!(difference(b"", b"1"), Some(0));
    }
}

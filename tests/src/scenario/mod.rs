//! A job as a person runs it: launch, checkpoints, kill -9, restart, and what all its runs printed together.
//!
//! ```text
//!             wait_for_checkpoint ┐
//! Job::launch ─▶ running ─────────┴▶ kill_all ─▶ dead ─▶ restart ─▶ running ─▶ wait ─▶ ended
//!                                                 run n, cut at its checkpoint's offset
//! ```
//! It speaks to `ckptbpf` by its command line alone, as docs/cli.md has it.

mod bystander;
mod client;
mod counting;
mod covered;
mod daemon;
mod fill;
mod hold;
mod holder;
mod listener;
mod listing;
mod scripts;
mod stepper;
mod steps;
mod survive;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::matrix;
use crate::sandbox::{Cmd, Finished, Leak, Running, Sandbox};
use crate::skip::skip_part;
use crate::user::User;

pub use bystander::{beside_a_job, open_files};
pub use client::daemon_client;
pub use counting::{Counting, has_another_worker, the_worker, workers};
pub use covered::Covered;
pub use daemon::Daemon;
pub use fill::{fills_done, missing_pages, time_of_a_fill};
pub use hold::{VARIABLE as HELD_BY, held, let_go, python_loop};
pub use holder::Holder;
pub use listener::listener;
pub use listing::Generation;
pub use scripts::Scripts;
pub use stepper::{stepper, walk, walk_through, walk_until};
use steps::kill_all_but;
pub use steps::{are_counted, kill_all, steps};
pub use survive::{Survival, survive};

/// How long a checkpoint or a restart may take in a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test, which `cargo xtask test` has built.
pub fn ckptbpf() -> PathBuf {
    let me = std::env::current_exe().expect("the path of the test program");
    let path = me.ancestors().nth(2).expect("target/release/deps/test").join("ckptbpf");
    assert!(path.is_file(), "no {}: build it with `cargo build --release`", path.display());
    path
}

/// `ckptbpf` with a verb and its arguments.
pub fn verb<A: AsRef<std::ffi::OsStr>>(verb: &str, args: impl IntoIterator<Item = A>) -> Cmd {
    Cmd::new(ckptbpf()).arg(verb).args(args)
}

/// The program of the directory's job, if somebody supervises it.
pub fn supervised(sandbox: &Sandbox, dir: &Path) -> Option<i32> {
    Tool::default().supervised(sandbox, dir)
}

/// The binary of a job's commands, and what they find in their environment.
#[derive(Debug, Clone)]
pub struct Tool {
    pub binary: PathBuf,
    pub environment: Vec<(String, String)>,
    /// Who runs it, in whose home; root in the box's folder, if nobody is named.
    pub user: Option<User>,
    /// A process that is killed with no job.
    pub spared: Option<i32>,
}

impl Default for Tool {
    fn default() -> Self {
        Self { binary: ckptbpf(), environment: Vec::new(), user: None, spared: None }
    }
}

impl Tool {
    /// As an ordinary user has it, who is nowhere else than in this box.
    pub fn of_user(sandbox: &Sandbox) -> Self {
        Self::default().by_user(sandbox)
    }

    /// The same by such a user.
    #[must_use]
    pub fn by_user(self, sandbox: &Sandbox) -> Self {
        let user = User::of(sandbox);
        Self { binary: user.copy_of(&self.binary), user: Some(user), ..self }
    }

    /// Where jobs of it begin, and their images are.
    fn folder(&self, sandbox: &Sandbox) -> PathBuf {
        self.user.as_ref().map_or_else(|| sandbox.dir(), |user| user.home().to_owned())
    }

    /// `ckptbpf` with a verb and its arguments.
    pub fn verb<A: AsRef<std::ffi::OsStr>>(&self, verb: &str, args: impl IntoIterator<Item = A>) -> Cmd {
        let cmd = Cmd::new(&self.binary).arg(verb).args(args);
        let cmd = self.environment.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value));
        self.user.as_ref().map_or_else(|| cmd.clone(), |user| user.runs(&cmd))
    }

    fn supervised(&self, sandbox: &Sandbox, dir: &Path) -> Option<i32> {
        let status = sandbox.run(self.verb("status", ["--json"]).arg(dir));
        (status.code() == 0).then(|| listing::supervised_pid(&status.stdout)).flatten()
    }
}

/// Eager or lazy restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Eager,
    Lazy,
}

/// The ways to restart that scenarios take in turn.
pub const MODES: &[Mode] = &[Mode::Eager, Mode::Lazy];

/// What an undisturbed run of a program gives.
pub struct Expected {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub file: Vec<u8>,
}

impl Expected {
    /// Runs the program to its end, without ckptbpf, in a folder of its own; `file` is what it writes there.
    pub fn of(sandbox: &Sandbox, program: &Cmd, file: Option<&str>) -> Self {
        let folder = sandbox.dir().join("undisturbed");
        std::fs::create_dir_all(&folder).expect("a folder for the undisturbed run");
        let running = sandbox.spawn(program.clone().cwd(&folder));
        let ended = running.wait(Duration::from_secs(60)).success();
        let file =
            file.map_or_else(Vec::new, |name| std::fs::read(folder.join(name)).expect("the program's file"));
        Self { stderr: ended.stderr_text(), stdout: ended.stdout, file }
    }

    /// What a victim says that it cannot set up here is skipped by name: "cannot: WHAT (WHY)".
    fn skip_what_cannot_be(&self, name: &str) {
        let cannot = self.stderr.lines().filter_map(|line| line.strip_prefix("cannot: ")?.split_once(" ("));
        cannot.for_each(|(what, why)| skip_part(&format!("{name}, {what}"), why.trim_end_matches(')')));
    }
}

/// A job and all its runs.
pub struct Job<'b> {
    sandbox: &'b Sandbox,
    tool: Tool,
    dir: PathBuf,
    running: Option<Running<'b>>,
    /// Standard output of the runs that count, each with where it is cut.
    runs: Vec<(PathBuf, Option<u64>)>,
    /// Which of `runs` made a generation.
    made_by: HashMap<u64, usize>,
    /// How often it was restarted.
    restarts: usize,
}

impl<'b> Job<'b> {
    /// How often it was restarted.
    pub fn restarts(&self) -> usize {
        self.restarts
    }

    /// `ckptbpf launch -d DIR OPTIONS -- PROGRAM`, DIR being `images` in the box's folder.
    pub fn launch(sandbox: &'b Sandbox, options: &[&str], program: &Cmd) -> Self {
        Self::launch_in(sandbox, sandbox.dir().join("images"), options, program)
    }

    /// `ckptbpf launch -d DIR OPTIONS -- PROGRAM`.
    pub fn launch_in(sandbox: &'b Sandbox, dir: PathBuf, options: &[&str], program: &Cmd) -> Self {
        Self::launch_by(sandbox, Tool::default(), dir, options, program)
    }

    /// The same by another binary than the one under test.
    pub fn launch_by(
        sandbox: &'b Sandbox,
        tool: Tool,
        dir: PathBuf,
        options: &[&str],
        program: &Cmd,
    ) -> Self {
        let cmd = tool.verb("launch", ["-d"]).arg(&dir).args(options).arg("--").program(program);
        let running = sandbox.spawn(cmd);
        let runs = vec![(running.stdout_path().to_owned(), None)];
        Self { sandbox, tool, dir, running: Some(running), runs, made_by: HashMap::new(), restarts: 0 }
    }

    /// The job's directory of images.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The supervisor of this run.
    pub fn running(&self) -> &Running<'b> {
        self.running.as_ref().expect("the job runs")
    }

    /// The checkpoints that `list` shows; none while there is no directory yet.
    pub fn checkpoints(&self) -> Vec<Generation> {
        let entries = std::fs::read_dir(self.sandbox.see(&self.dir)).into_iter().flatten().flatten();
        if !entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "ckpt")) {
            return Vec::new();
        }
        let listed = self.sandbox.run(self.tool.verb("list", ["--json"]).arg(&self.dir)).success();
        serde_json::from_slice(&listed.stdout).expect("list --json prints an array of checkpoints")
    }

    /// The newest complete checkpoint's number, 0 for none.
    pub fn newest(&self) -> u64 {
        self.checkpoints().iter().filter(|one| one.complete).map(|one| one.id).max().unwrap_or(0)
    }

    /// Waits until checkpoint `id`, or a later one, is complete.
    pub fn wait_for_checkpoint(&self, id: u64) {
        self.sandbox.wait_for(&format!("checkpoint {id}"), PATIENCE, || {
            let running = self.running();
            assert!(!running.has_ended(), "the job ended before checkpoint {id}: {}", running.stderr());
            self.newest() >= id
        });
    }

    /// `ckptbpf checkpoint`, which returns when it is durable. A program may say something before its job is known.
    pub fn checkpoint(&self) -> Generation {
        self.program();
        self.try_checkpoint().success();
        self.checkpoints().pop().expect("a checkpoint that was just taken")
    }

    /// `ckptbpf checkpoint`, which may be refused.
    pub fn try_checkpoint(&self) -> Finished {
        self.sandbox.run(self.tool.verb("checkpoint", [&self.dir]))
    }

    /// How many pages have yet to arrive after a lazy restart; 0 after any other.
    pub fn pages_missing(&self) -> u64 {
        let status = self.sandbox.run(verb("status", ["--json"]).arg(&self.dir)).success();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let missing = status.get("pages_missing").unwrap_or_else(|| panic!("no pages_missing in {status}"));
        missing.as_u64().unwrap_or(0)
    }

    /// Process id of the program itself, inside the box; waits until the job is known.
    pub fn program(&self) -> i32 {
        let mut pid = None;
        self.sandbox.wait_for("status to know the job", PATIENCE, || {
            let running = self.running();
            assert!(!running.has_ended(), "the job ended at once: {}", running.stderr());
            pid = self.tool.supervised(self.sandbox, &self.dir);
            pid.is_some()
        });
        pid.expect("waited for")
    }

    /// Sends the program itself a signal.
    pub fn signal(&self, signal: Signal) {
        self.sandbox.kill(self.program(), signal as i32).expect("the program lives");
    }

    /// kill -9 of ckptbpf and of everything it has started, and nothing of it left.
    pub fn kill_all(&mut self) {
        self.sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
        let running = self.running.take().expect("the job runs");
        let tree = listing::tree(&self.sandbox.ps(), running.pid);
        for pid in tree {
            let _ = self.sandbox.kill(pid, Signal::SIGKILL as i32);
        }
        running.wait(PATIENCE).expect_code(137);
        kill_all_but(self.sandbox, self.tool.spared);
        self.note_checkpoints();
    }

    /// `ckptbpf checkpoint --kill`: the program ends with it.
    pub fn checkpoint_and_end(&mut self) {
        self.program();
        self.sandbox.run(self.tool.verb("checkpoint", ["--kill"]).arg(&self.dir)).success();
        self.running.take().expect("the job runs").wait(PATIENCE).expect_code(85);
        self.note_checkpoints();
    }

    /// kill -9 of ckptbpf alone; the program's id.
    pub fn kill_supervisor(&mut self) -> i32 {
        let program = self.program();
        self.lose_supervisor();
        program
    }

    /// The same of one that may have been killed already.
    pub fn lose_supervisor(&mut self) {
        let running = self.running.take().expect("the job runs");
        running.kill(Signal::SIGKILL);
        running.wait(PATIENCE).expect_code(137);
        self.note_checkpoints();
    }

    /// `ckptbpf attach` to a program whose supervisor is gone; it still writes to where it wrote.
    pub fn attach(&mut self, program: i32, options: &[&str]) {
        self.attach_by(self.tool.verb("attach", options).arg(program.to_string()));
    }

    /// The same by a command that is given whole.
    pub fn attach_by(&mut self, cmd: Cmd) {
        assert!(self.running.is_none(), "the job is supervised");
        self.running = Some(self.sandbox.spawn(cmd));
        self.program();
    }

    /// `ckptbpf restart`, from the newest checkpoint.
    pub fn restart(&mut self, mode: Mode, options: &[&str]) {
        self.note_checkpoints();
        let from = self.newest();
        self.restart_from(from, mode, options);
    }

    /// `ckptbpf restart --at ID`.
    pub fn restart_at(&mut self, id: u64, mode: Mode, options: &[&str]) {
        self.note_checkpoints();
        let at = id.to_string();
        self.restart_from(id, mode, &[&["--at", &at], options].concat());
    }

    fn restart_from(&mut self, id: u64, mode: Mode, options: &[&str]) {
        assert!(self.running.is_none(), "the job still runs");
        let maker = self.made_by.get(&id).copied().unwrap_or_else(|| panic!("no run made checkpoint {id}"));
        self.runs.truncate(maker + 1);
        self.runs[maker].1 = self.stdout_offset(id);
        let lazy = if mode == Mode::Lazy { &["--lazy"][..] } else { &[] };
        let cmd = self.tool.verb("restart", lazy).args(options).arg(&self.dir);
        let running = self.sandbox.spawn(cmd);
        self.runs.push((running.stdout_path().to_owned(), None));
        self.running = Some(running);
        self.restarts += 1;
        matrix::note(mode, self.restarts);
    }

    /// Waits for the end of the run.
    pub fn wait(&mut self, deadline: Duration) -> Finished {
        let finished = self.running.take().expect("the job runs").wait(deadline);
        self.note_checkpoints();
        finished
    }

    /// Makes a job that runs a [`stepper`] take all its steps, and waits for the end of the run.
    pub fn walk(&mut self) -> Finished {
        let finished = walk(self.sandbox, self.running.take().expect("the job runs"));
        self.note_checkpoints();
        finished
    }

    /// What the job has printed: its runs one after another, each cut at the offset of the checkpoint that the next
    /// one began from.
    pub fn stdout(&self) -> Vec<u8> {
        let mut joined = Vec::new();
        for (path, cut) in &self.runs {
            let printed = std::fs::read(path).unwrap_or_default();
            let end = cut.map_or(printed.len(), |cut| usize::try_from(cut).expect("an offset"));
            assert!(end <= printed.len(), "{}: cut at {end} of {} bytes", path.display(), printed.len());
            joined.extend_from_slice(&printed[..end]);
        }
        joined
    }

    /// The image file of a generation.
    pub fn image(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:06}.ckpt"))
    }

    /// Whose output a checkpoint belongs to is known only while its run is the newest.
    fn note_checkpoints(&mut self) {
        let run = self.runs.len() - 1;
        for generation in self.checkpoints() {
            self.made_by.entry(generation.id).or_insert(run);
        }
    }

    fn stdout_offset(&self, id: u64) -> Option<u64> {
        let inspected = self.sandbox.run(self.tool.verb("inspect", ["--json"]).arg(self.image(id))).success();
        listing::stdout_offset(&inspected.stdout)
    }
}

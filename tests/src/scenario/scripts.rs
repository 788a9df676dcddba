//! Job scripts as they were written for DMTCP: a folder with the program `./count`, and the four names in PATH.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::steps::kill_all_but;
use super::{Expected, Tool, held};
use crate::sandbox::{Cmd, Finished, Leak, Running, Sandbox};
use crate::{assert_same, victim, victim_cmd};

/// What `./count` writes.
const FILE: &str = "numbers";

/// Where the scripts run.
pub struct Scripts<'b> {
    sandbox: &'b Sandbox,
    tool: Tool,
    folder: PathBuf,
    path: String,
    /// What `./count` does undisturbed.
    pub expected: Expected,
}

impl<'b> Scripts<'b> {
    /// `./count` takes `steps`, `period_us` apart; its last step waits for [`super::let_go`].
    pub fn of(sandbox: &'b Sandbox, tool: Tool, steps: u32, period_us: u32) -> Self {
        let counter = victim("count_static");
        let of_user = tool.user.as_ref();
        let folder = of_user.map_or_else(|| sandbox.dir().join("job"), |user| user.home().to_owned());
        let program = of_user.map_or_else(|| counter.clone(), |user| user.copy_of(&counter));
        std::fs::create_dir_all(&folder).expect("the job's folder");
        let line = format!("#!/bin/sh\nexec {} {FILE} {steps} {period_us}\n", program.display());
        std::fs::write(folder.join("count"), line).expect("the program");
        std::fs::set_permissions(folder.join("count"), PermissionsExt::from_mode(0o755)).expect("its mode");
        let undisturbed = victim_cmd("count_static").args([FILE, &steps.to_string(), "0"]);
        let expected = Expected::of(sandbox, &undisturbed, Some(FILE));
        let names = folder.join("bin");
        sandbox.run(tool.verb("compat", ["install"]).arg(&names)).success();
        let path = format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", names.display());
        Self { sandbox, tool, folder, path, expected }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A script for bash.
    pub fn script(&self, script: &str) -> Cmd {
        let cmd = held(self.sandbox, Cmd::sh(script).env("PATH", &self.path)).cwd(&self.folder);
        self.tool.user.as_ref().map_or_else(|| cmd.clone(), |user| user.runs(&cmd))
    }

    /// Starts one.
    pub fn start(&self, script: &str) -> Running<'b> {
        self.sandbox.spawn(self.script(script))
    }

    /// Runs one to its end.
    pub fn run(&self, script: &str) -> Finished {
        self.sandbox.run(self.script(script))
    }

    /// The files that a script's `ckpt_*.dmtcp` finds, by name.
    pub fn pointers(&self) -> Vec<PathBuf> {
        self.named(|name| name.starts_with("ckpt_") && name.ends_with(".dmtcp"))
    }

    /// The directories of images beside them.
    pub fn images(&self) -> Vec<PathBuf> {
        self.named(|name| name.starts_with(".ckpt_") && !name.ends_with(".tmp"))
    }

    fn named(&self, is_meant: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        found.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&is_meant));
        found.sort_unstable();
        found
    }

    /// The number of the newest checkpoint of all; 0 for none.
    pub fn newest(&self) -> u64 {
        let files = self.images().into_iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
        let number = |entry: std::fs::DirEntry| {
            entry.file_name().to_str().and_then(|name| name.strip_suffix(".ckpt")?.parse().ok())
        };
        files.flatten().filter_map(number).max().unwrap_or(0)
    }

    /// Waits for a checkpoint later than `before`, the file that stands for it, and the script, which is the last thing to be made.
    pub fn wait_for_checkpoint(&self, running: &Running<'_>, before: u64, deadline: Duration) {
        let script = self.folder.join("dmtcp_restart_script.sh");
        self.sandbox.wait_for("a checkpoint", deadline, || {
            assert!(!running.has_ended(), "it ended before: {}", running.stderr());
            self.newest() > before && !self.pointers().is_empty() && script.exists()
        });
    }

    /// Nobody in the box, whose network is its own, has a socket of TCP.
    pub fn no_port_is_open(&self) {
        let table = self.run("cat /proc/net/tcp /proc/net/tcp6").stdout_text();
        let (headings, sockets): (Vec<&str>, Vec<&str>) =
            table.lines().partition(|line| line.contains("local_address"));
        assert!(!headings.is_empty() && sockets.is_empty(), "{table}");
    }

    /// kill -9 of all that runs in the box, as often as it takes.
    pub fn kill_everything(&self) {
        self.sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
        kill_all_but(self.sandbox, self.tool.spared);
    }

    /// What it has written to its file is, from the first byte on, what an undisturbed run writes.
    pub fn agrees(&self) {
        let written = self.written();
        let most = written.len().min(self.expected.file.len());
        assert_same("the file", &self.expected.file[..most], &written);
    }

    /// Its file is that of an undisturbed run, and so is the end of what the last run printed.
    pub fn is_whole(&self, printed: &[u8]) {
        assert_same("the file", &self.expected.file, &self.written());
        let from = self.expected.stdout.len().saturating_sub(printed.len());
        assert_same("the end of the output", &self.expected.stdout[from..], printed);
    }

    fn written(&self) -> Vec<u8> {
        std::fs::read(self.folder.join(FILE)).expect("the program's file")
    }
}

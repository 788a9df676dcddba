//! Commands of Slurm's that say what a test has them say, and a job as far as its environment goes: there is no Slurm.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::sandbox::{Cmd, Running, Sandbox};
use crate::scenario::{Daemon, Tool, held};
use crate::victim_cmd;

const SOON: Duration = Duration::from_secs(60);

/// Each notes what it was asked, and then does what the test says.
const COMMAND: &str = r#"#!/bin/sh
here=${0%/*} name=${0##*/}
echo "$name $*" >>"$here/asked"
. "$here/$name.says"
"#;

/// A job of Slurm's, as far as its environment and its commands go.
pub struct Job<'b> {
    pub sandbox: &'b Sandbox,
    pub tool: Tool,
    fake: PathBuf,
}

impl<'b> Job<'b> {
    fn of(sandbox: &'b Sandbox, tool: Tool) -> Self {
        let fake = sandbox.dir().join("fake");
        std::fs::create_dir(&fake).unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            std::fs::write(fake.join(name), text).unwrap();
            std::fs::set_permissions(fake.join(name), PermissionsExt::from_mode(mode)).unwrap();
        };
        ["squeue", "scontrol"].into_iter().for_each(|name| write(name, COMMAND, 0o755));
        write("asked", "", 0o666);
        let job = Self { sandbox, tool, fake };
        job.have("squeue", "echo RUNNING UNLIMITED");
        job.have("scontrol", "exit 0");
        job
    }

    /// Has a command do this from now on.
    pub fn have(&self, command: &str, line: &str) {
        let says = self.fake.join(format!("{command}.says"));
        let new = says.with_extension("new");
        std::fs::write(&new, format!("{line}\n")).unwrap();
        std::fs::rename(&new, &says).unwrap();
    }

    /// Has squeue tell of a limit that is so many seconds from now.
    pub fn ends_in(&self, seconds: u64) {
        let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
        let tell = "echo \"RUNNING 0:$((left / 60)):$((left % 60))\"";
        self.have("squeue", &format!("left=$(({end} - $(date +%s))); [ $left -gt 0 ] || left=0; {tell}"));
    }

    /// A line for each time that one of them was run.
    pub fn asked(&self) -> String {
        std::fs::read_to_string(self.fake.join("asked")).unwrap()
    }

    pub fn was_queued_again(&self) -> bool {
        self.asked().contains("scontrol requeue 41\n")
    }

    /// Where it was submitted from.
    pub fn home(&self) -> PathBuf {
        self.tool.user.as_ref().map_or_else(|| self.sandbox.dir(), |user| user.home().to_owned())
    }

    /// Where its checkpoints are.
    pub fn dir(&self) -> PathBuf {
        self.home().join("ckptbpf/41")
    }

    /// What its last writer has recorded.
    pub fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir().join("job.json")).unwrap()).unwrap()
    }

    fn within(&self, cmd: Cmd, restarts: u32) -> Cmd {
        let path = format!("{}:/usr/bin:/bin", self.fake.display());
        let cmd = cmd.env("PATH", &path).env("SLURM_JOB_ID", "41").env("SLURMD_NODENAME", "n1");
        let cmd = cmd.env("SLURM_SUBMIT_DIR", self.home().to_str().unwrap());
        if restarts > 0 { cmd.env("SLURM_RESTART_COUNT", &restarts.to_string()) } else { cmd }
    }

    /// `ckptbpf slurm run OPTIONS -- PROGRAM` in the job, which was queued again so often.
    pub fn command(&self, options: &[&str], restarts: u32, program: &Cmd) -> Cmd {
        let program = self.tool.user.as_ref().map_or_else(|| program.clone(), |user| user.reaches(program));
        let cmd = self.tool.verb("slurm", ["run"]).args(options).arg("--").program(&program);
        self.within(cmd, restarts)
    }

    /// The same of a counter that does not take its last step, once it runs.
    pub fn count(&self, options: &[&str], restarts: u32) -> Running<'b> {
        let running = self.sandbox.spawn(self.command(options, restarts, &held(self.sandbox, counter())));
        match restarts {
            0 => running.wait_for_output("\n", SOON),
            _ => self.wait_for_supervisor(&running),
        }
        running
    }

    fn wait_for_supervisor(&self, running: &Running) {
        self.sandbox.wait_for("a supervisor", SOON, || {
            assert!(!running.has_ended(), "{}", running.stderr());
            self.sandbox.run(self.tool.verb("status", ["--json"]).arg(self.dir())).code() == 0
        });
    }

    pub fn wait_for_checkpoint(&self, running: &Running) {
        self.sandbox.wait_for("a checkpoint", SOON, || {
            assert!(!running.has_ended(), "{}", running.stderr());
            let entries = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "ckpt"))
        });
    }
}

/// The program of a job.
pub fn counter() -> Cmd {
    victim_cmd("count_static").args(["numbers", "800", "2000"])
}

/// How ckptbpf comes by its rights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Root,
    Daemon,
    Alone,
}

/// A test in one of those ways.
pub fn by(way: Way, name: &str, test: impl FnOnce(&Job)) {
    let sandbox = Sandbox::new(name);
    let daemon = (way == Way::Daemon).then(|| Daemon::begin(&sandbox, &[]));
    let tool = if way == Way::Root { Tool::default() } else { Tool::of_user(&sandbox) };
    let tool = daemon.iter().fold(tool, |tool, daemon| daemon.serves(tool));
    test(&Job::of(&sandbox, tool));
    if let Some(daemon) = daemon {
        let log = daemon.end().stderr_text();
        assert!(log.contains(": worker "), "{log}");
    }
}

//! A batch job: what Slurm tells of it, and the files that it writes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{SOON, Slurm, groups};
use crate::sandbox::Finished;

/// A job, or one of an array.
pub struct Batch<'s, 'b> {
    slurm: &'s Slurm<'b>,
    /// Where it was submitted.
    pub folder: PathBuf,
    /// `41`, or `40_3`.
    pub name: String,
}

impl<'s, 'b> Batch<'s, 'b> {
    pub(super) fn new(slurm: &'s Slurm<'b>, folder: &Path, name: &str) -> Self {
        Self { slurm, folder: folder.to_owned(), name: name.to_owned() }
    }

    /// One of an array.
    pub fn task(&self, number: u32) -> Self {
        Self::new(self.slurm, &self.folder, &format!("{}_{number}", self.name))
    }

    /// A field of `scontrol show job`; nothing of what is not there.
    pub fn field(&self, name: &str) -> String {
        let told = self.told();
        let word = told.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap_or_default().to_owned()
    }

    /// The line that is about it.
    fn told(&self) -> String {
        let is_it = |line: &&str| {
            let has = |name: &str, value: &str| {
                line.split_whitespace().any(|word| word.strip_prefix(name) == Some(value))
            };
            match self.name.split_once('_') {
                Some((array, task)) => has("ArrayJobId=", array) && has("ArrayTaskId=", task),
                None => has("JobId=", &self.name),
            }
        };
        self.slurm.jobs().lines().find(is_it).unwrap_or_default().to_owned()
    }

    pub fn state(&self) -> String {
        self.field("JobState")
    }

    /// The number by which its processes and files know it, which of one of an array is another one.
    pub fn number(&self) -> String {
        self.field("JobId")
    }

    /// Waits for a condition; fails with what Slurm tells of the job, and what that has said.
    pub fn wait_for(&self, what: &str, deadline: Duration, mut cond: impl FnMut() -> bool) {
        let why = crate::sandbox::until(deadline, || None, &mut cond);
        if let Some(why) = why {
            panic!("job {}: waiting for {what}: {why}\n{}\n{}", self.name, self.told(), self.errors());
        }
    }

    pub fn wait_for_state(&self, state: &str, deadline: Duration) {
        self.wait_for(state, deadline, || self.state() == state);
    }

    /// Waits until it runs with a checkpoint that can be gone on from.
    pub fn wait_for_checkpoint(&self) {
        self.wait_for("a checkpoint", SOON, || {
            let entries = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "ckpt"))
        });
    }

    /// Waits until it was queued again for the time `restarts`, and has it begin at once, where root says. By itself it would not
    /// begin before its last credential is out of date (`cred_expire`).
    pub fn begin_again(&self, restarts: u32, node: Option<&str>) {
        let restarts = restarts.to_string();
        self.wait_for("it to be queued again", SOON, || {
            self.field("Restarts") == restarts && self.state() == "PENDING"
        });
        // One of the second in which the last was taken back would count as that (slurmd compares seconds).
        let since = seconds();
        self.wait_for("the next second", SOON, || seconds() > since);
        let job = format!("jobid={}", self.name);
        let node = node.map(|node| format!("ReqNodeList={node}"));
        let words = ["update", job.as_str(), "StartTime=now"].into_iter().map(str::to_owned).chain(node);
        self.slurm.root("scontrol", words).success();
        self.wait_for_state("RUNNING", SOON);
    }

    /// What `--signal=B:…` sends.
    pub fn signal_script(&self, signal: &str) {
        self.slurm.root("scancel", ["-b", "-s", signal, self.name.as_str()]).success();
    }

    /// The node on which its script runs.
    pub fn node(&self) -> String {
        self.field("BatchHost")
    }

    /// Whether anything of it is left in a node's control groups.
    pub fn has_groups(&self) -> bool {
        let number = self.number();
        (0..2).any(|node| groups::has_job(self.slurm.node(node), &number))
    }

    /// Bytes that it has had at most, and how often a process of it was killed for want of memory; none where nobody tells, and before it
    /// has a node.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let node = self.node();
        if node.is_empty() { None } else { groups::memory(&node, &self.number()) }
    }

    /// The directory of its checkpoints.
    pub fn dir(&self) -> PathBuf {
        self.folder.join("ckptbpf").join(&self.name)
    }

    /// What its last writer has recorded.
    pub fn record(&self) -> Value {
        let text = std::fs::read(self.dir().join("job.json")).expect("the job's record");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// A file of its job's daemon on a node, by its ending.
    pub fn of_daemon(&self, node: &str, ending: &str) -> PathBuf {
        let name = format!("/run/ckptbpf/slurm/{node}-{}.{ending}", self.number());
        self.slurm.sandbox.see(Path::new(&name))
    }

    /// Its standard output, in all its runs.
    pub fn output(&self) -> Vec<u8> {
        std::fs::read(self.folder.join(format!("out-{}", self.number()))).unwrap_or_default()
    }

    /// Its standard error.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.folder.join(format!("err-{}", self.number()))).unwrap_or_default()
    }

    /// `ckptbpf VERB …`, run by its user beside it.
    pub fn ckptbpf(&self, args: &[&str]) -> Finished {
        let tool = self.slurm.tool.to_str().expect("a UTF-8 path");
        self.slurm.by(&self.slurm.user, &self.folder, tool, args)
    }
}

/// Since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

//! Slurm as Debian has it (slurmctld, two slurmd, munge), in a box: two nodes that are one machine.
//!
//! ```text
//! Slurm::begin ─▶ up ── submit ─▶ Batch: state, signals, files ── Drop: nothing in the queue, nobody left, no control group left
//! ```
//! Ports, process ids, /run, /dev/shm and users are the box's own, control groups bear its name, so nothing is shared with whatever
//! else runs. Prolog, epilog and task prolog are the repository's. What a job leaves behind fails the test: files in
//! /run/ckptbpf and /dev/shm and processes by the box, control groups here.

mod batch;
pub mod commands;
mod config;
mod groups;
mod side_by_side;

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::User as Account;

use crate::sandbox::{Cmd, Finished, Sandbox, until};
use crate::scenario::ckptbpf;
use crate::user::User;

pub use batch::Batch;
pub use side_by_side::{Scenario, side_by_side};

/// How long Slurm may take for what it does at once.
pub const SOON: Duration = Duration::from_secs(60);

/// How old what Slurm tells of its jobs may be: all who wait for something ask once together.
const FRESH: Duration = Duration::from_millis(200);

/// Its daemons, and what they start.
const DAEMONS: [&str; 4] = ["slurmd", "slurmctld", "munged", "slurmstepd"];

/// Where Debian has daemons.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts them, as root.
const START: &str = r#"set -eu
bed=$1
shift
at=$bed/munge
mkdir -p /run/slurmd
# Where 127.0.0.1 is all that there is, getaddrinfo(3) finds no address at all (AI_ADDRCONFIG).
ip address add 192.0.2.1/32 dev lo
for node in "$@"; do mkdir -p "/run/slurmd/$node"; done
setpriv --reuid munge --regid munge --clear-groups munged --force --key-file="$at/munge.key" --socket="$at/munge.socket" \
    --pid-file="$at/munged.pid" --log-file="$at/munged.log" --seed-file="$at/munged.seed"
slurmctld -f "$bed/slurm.conf"
for node in "$@"; do
    slurmd -f "$bed/slurm.conf" -N "$node"
done
"#;

/// A Slurm that runs.
pub struct Slurm<'b> {
    pub sandbox: &'b Sandbox,
    /// Whose jobs they are.
    pub user: User,
    /// ckptbpf, where every user can run it.
    pub tool: PathBuf,
    bed: PathBuf,
    /// Their names say whose they are, as their control groups do (`sandbox::leaks`).
    nodes: [String; 2],
    /// All its jobs, and since when that is so.
    told: Mutex<Option<(Instant, String)>>,
}

impl<'b> Slurm<'b> {
    /// Starts one, and returns once both nodes wait for jobs; none where it is not installed.
    pub fn begin(sandbox: &'b Sandbox) -> Option<Self> {
        let is_there = |name: &&str| PATH.split(':').any(|folder| Path::new(folder).join(name).is_file());
        if !DAEMONS[..3].iter().all(is_there) {
            return None;
        }
        let user = User::of(sandbox);
        let tool = user.copy_of(&ckptbpf());
        let bed = sandbox.dir().join("slurm");
        let nodes = [1, 2].map(|number| format!("k{number}-ckptbpf-of-{}", std::process::id()));
        for folder in ["munge", "state", "log", "hooks"] {
            std::fs::create_dir_all(bed.join(folder)).expect("a folder of Slurm's");
        }
        let slurm = Self { sandbox, user, tool, bed, nodes, told: Mutex::default() };
        slurm.make_key();
        slurm.make_hooks();
        config::write(&slurm.bed, &slurm.nodes);
        let start = Cmd::new("/bin/bash").args(["-c", START, "start"]).arg(&slurm.bed).args(&slurm.nodes);
        sandbox.run(slurm.user.known_to(&slurm.as_usual(start))).success();
        sandbox.wait_for("both nodes", SOON, || {
            let nodes = slurm.root("scontrol", ["-o", "show", "nodes"]).stdout_text();
            nodes.lines().filter(|node| node.contains(" State=IDLE ")).count() == slurm.nodes.len()
        });
        Some(slurm)
    }

    /// The name of the first or the second node.
    pub fn node(&self, number: usize) -> &str {
        &self.nodes[number]
    }

    /// A command of Slurm's, run by root to its end.
    pub fn root<A: AsRef<OsStr>>(&self, name: &str, args: impl IntoIterator<Item = A>) -> Finished {
        self.sandbox.run(self.as_usual(Cmd::new(name).args(args)))
    }

    /// The same by a user, in a folder.
    pub fn by<A: AsRef<OsStr>>(
        &self,
        who: &User,
        folder: &Path,
        name: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Finished {
        self.sandbox.run(self.as_usual(who.runs(&Cmd::new(name).args(args)).cwd(folder)))
    }

    /// A folder of the user's, made for a job.
    pub fn folder(&self, who: &User, name: &str) -> PathBuf {
        let folder = who.home().join(name);
        std::fs::create_dir(&folder).expect("a folder for a job");
        let home = std::fs::metadata(who.home()).expect("the user's home");
        chown(&folder, Some(home.uid()), Some(home.gid())).expect("its owner");
        folder
    }

    /// `sbatch OPTIONS` of a script of /bin/sh with these lines, in the folder; output and errors are files there.
    pub fn submit(&self, who: &User, folder: &Path, options: &[&str], lines: &str) -> Batch<'_, 'b> {
        let script = folder.join("script");
        std::fs::write(&script, format!("#!/bin/sh\n{lines}\n")).expect("the script");
        let own = ["--parsable", "--open-mode=append", "--output=out-%j", "--error=err-%j", "--requeue"];
        let args = own.iter().chain(options).map(|word| (*word).to_owned());
        let args = args.chain([script.to_str().expect("a UTF-8 path").to_owned()]);
        let told = self.by(who, folder, "sbatch", args).success().stdout_text();
        Batch::new(self, folder, told.trim())
    }

    /// `sbatch` of a script as it is, in the folder.
    pub fn submit_as_it_is(&self, who: &User, folder: &Path, script: &str) -> Batch<'_, 'b> {
        let path = folder.join("script");
        std::fs::write(&path, script).expect("the script");
        let told = self.by(who, folder, "sbatch", [OsStr::new("--parsable"), path.as_os_str()]);
        Batch::new(self, folder, told.success().stdout_text().trim())
    }

    /// What a node's prolog does, once more, as after a crash of what it has started, where an administrator has set these.
    pub fn prolog(&self, node: &str, job: &str, settings: &[(&str, &str)]) {
        let hook = Cmd::new(self.bed.join("hooks/prolog")).env("SLURMD_NODENAME", node);
        let hook = settings.iter().fold(hook, |hook, (name, value)| hook.env(name, value));
        let uid = crate::user::UID.to_string();
        self.sandbox.run(hook.env("SLURM_JOB_ID", job).env("SLURM_JOB_UID", &uid)).success();
    }

    /// What `scontrol -o show job` tells: a line a job.
    fn jobs(&self) -> String {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, jobs)) = told.as_ref().filter(|told| told.0.elapsed() < FRESH) {
            return jobs.clone();
        }
        let jobs = self.root("scontrol", ["-o", "show", "job"]).stdout_text();
        *told = Some((Instant::now(), jobs.clone()));
        jobs
    }

    fn as_usual(&self, cmd: Cmd) -> Cmd {
        let conf = self.bed.join("slurm.conf");
        cmd.env("SLURM_CONF", conf.to_str().expect("a UTF-8 path")).env("PATH", PATH)
    }

    fn make_key(&self) {
        let munge = Account::from_name("munge").ok().flatten().expect("the user of munge's package");
        let (uid, gid) = (Some(munge.uid.as_raw()), Some(munge.gid.as_raw()));
        let key: Vec<u8> = (0..64).flat_map(|_| rand_bytes()).collect();
        let folder = self.bed.join("munge");
        let file = folder.join("munge.key");
        std::fs::write(&file, key).expect("munge's key");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o400)).expect("its mode");
        chown(&file, uid, gid).expect("the key's owner");
        chown(folder, uid, gid).expect("munge's folder");
    }

    /// The repository's own, with the one thing that an administrator sets.
    fn make_hooks(&self) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("slurm");
        let bin = self.tool.parent().expect("its folder").display().to_string();
        let write = |name: &str, text: &str| {
            let path = self.bed.join("hooks").join(name);
            std::fs::write(&path, text).expect("a hook");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("the hook's mode");
        };
        for name in ["prolog", "epilog"] {
            let hook = source.join(name).display().to_string();
            write(name, &format!("#!/bin/sh\nexport CKPTBPF_PATH={bin}\nexec /bin/sh {hook}\n"));
        }
        let text = std::fs::read_to_string(source.join("task-prolog")).expect("the task prolog");
        write("task-prolog", &text);
    }

    /// Ends every job and then Slurm itself; what stays is told.
    fn end(&self) -> Vec<String> {
        let mut left = Vec::new();
        let queue = || self.root("squeue", ["-h", "-o", "%A"]).stdout_text();
        let jobs = queue();
        if !jobs.trim().is_empty() {
            self.root("scancel", jobs.split_whitespace());
        }
        let wait = |what: &str, left: &mut Vec<String>, cond: &mut dyn FnMut() -> bool| {
            left.extend(until(SOON, || None, cond).map(|why| format!("{what}: {why}")));
        };
        wait("the queue to be empty", &mut left, &mut || queue().trim().is_empty());
        let daemons = || {
            let mut all = self.sandbox.ps();
            all.retain(|one| DAEMONS.contains(&one.comm.as_str()));
            all.into_iter().map(|one| one.pid).collect::<Vec<_>>()
        };
        for pid in daemons() {
            let _ = self.sandbox.kill(pid, Signal::SIGTERM as i32);
        }
        wait("Slurm's daemons to be gone", &mut left, &mut || daemons().is_empty());
        for pid in daemons() {
            let _ = self.sandbox.kill(pid, Signal::SIGKILL as i32);
        }
        left.extend(groups::remove(&self.nodes));
        left
    }

    /// The last that it has logged.
    fn logs(&self) -> String {
        let logs = std::fs::read_dir(self.bed.join("log")).into_iter().flatten().flatten();
        let tail = |path: PathBuf| {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text[text.len().saturating_sub(6000)..]).into_owned();
            format!("{}:\n{text}", path.display())
        };
        logs.map(|log| tail(log.path())).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Slurm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // The box may be over.
        let left = catch_unwind(AssertUnwindSafe(|| self.end()));
        let left = left.unwrap_or_else(|_| vec!["what it could not look at".into()]);
        let report = format!("Slurm has left behind: {left:?}");
        if std::thread::panicking() {
            eprintln!("{report}");
        } else {
            assert!(left.is_empty(), "{report}");
        }
    }
}

/// Sixteen that nobody knows.
fn rand_bytes() -> Vec<u8> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel's random numbers");
    uuid.trim().bytes().filter(|byte| *byte != b'-').take(16).collect()
}

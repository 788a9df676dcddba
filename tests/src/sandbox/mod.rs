//! The box: every test runs in one.
//!
//! ```text
//! test process ──socketpair──▶ box-init, pid 1 of its own session, pid, mount, ipc and network namespace
//!      │                           ├── what the test runs (each its own process group)
//!      └─ /proc/INIT/root ─────────┴── private /proc, and tmpfs on /tmp, /run and /dev/shm
//! ```
//!
//! It promises:
//! - Whatever a test starts dies with the box; the box dies with the test, even by kill -9 (end of file on the
//!   socket ends init, and the end of init ends the namespace), and at its time limit.
//! - Process ids in it are its own, so that parallel tests never take each other's.
//! - Ports and abstract socket names in it are its own; its one interface is the loopback.
//! - Orphans are reaped at once.
//! - Dropping it **fails the test** if a process, a mount, a file in /dev/shm or /run/ckptbpf, a cgroup or a pinned
//!   BPF object of ours remains. BPF programs and links that are not pinned live only as long as a descriptor, so a
//!   leaked one shows as the process that holds it.
//!
//! Environment: `CKPTBPF_TEST_TIMEOUT_SCALE` multiplies every deadline; `CKPTBPF_KEEP_BOX` keeps the directory.

mod channel;
mod cmd;
pub mod inside;
mod keep;
mod leaks;
mod process;
mod running;
mod wait;
mod wire;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

pub use cmd::Cmd;
pub use leaks::Leak;
pub use process::Process;
pub use running::{Finished, Running};
pub use wait::{let_pass, scaled, until};

use channel::Channel;
use leaks::Before;
use wire::{Answer, Request};

/// How long a box lives unless its test says otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// How long what was just killed may take to be gone before it counts as left behind.
const GRACE: Duration = Duration::from_secs(2);

/// A box; see the module.
pub struct Sandbox {
    name: String,
    channel: Channel,
    outer: Child,
    /// Process id of the box's init, as this process sees it.
    init: i32,
    base: Option<tempfile::TempDir>,
    before: Before,
    tolerated: Mutex<Vec<Leak>>,
    keeps: bool,
}

impl Sandbox {
    /// A new box for the test `name`, with two minutes to live.
    pub fn new(name: &str) -> Self {
        Self::with_limit(name, TIME_LIMIT)
    }

    /// A new box that ends, and fails its test, after `limit` (scaled).
    pub fn with_limit(name: &str, limit: Duration) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the box needs root for its namespaces: run the tests as root"
        );
        let base = tempfile::Builder::new()
            .prefix(&format!("ckptbpf-box-{name}-"))
            .tempdir_in("/var/tmp")
            .expect("a directory for the box in /var/tmp");
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755))
            .expect("chmod of the box's directory");
        for folder in ["work", "io"] {
            std::fs::create_dir(base.path().join(folder)).expect("a folder in the box's directory");
        }
        let before = Before::now();
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let outer = Command::new(init_program())
            .arg(scaled(limit).as_millis().to_string())
            .args(keep::visible(base.path()))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()
            .expect("box-init starts");
        let channel = Channel::over(name, ours);
        let init = channel.ready();
        Self {
            name: name.into(),
            channel,
            outer,
            init,
            base: Some(base),
            before,
            tolerated: Mutex::default(),
            keeps: false,
        }
    }

    /// Keeps the box's directory when the test fails.
    #[must_use]
    pub fn kept_if_it_fails(mut self) -> Self {
        self.keeps = true;
        self
    }

    /// The box's working directory: on disk, mode 0755, the same path inside and outside.
    pub fn dir(&self) -> PathBuf {
        self.base().join("work")
    }

    /// The box's file system as seen from outside: `root().join("tmp")` is its private /tmp.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init))
    }

    /// A path of the box as seen from outside, mounts in the box included.
    pub fn see(&self, path: &Path) -> PathBuf {
        self.root().join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Starts a command in the box and returns at once; it is its own process group.
    pub fn spawn(&self, cmd: impl Into<Cmd>) -> Running<'_> {
        let cmd = cmd.into();
        let io = self.base().join("io");
        match self.channel.ask(|serial| Request::Spawn(cmd.order(serial, &self.dir(), &io))) {
            (serial, Answer::Spawned { pid }) => Running::new(self, serial, pid, &io, &cmd),
            (_, answer) => panic!("box {}: cannot start {}: {answer:?}", self.name, cmd.shown()),
        }
    }

    /// Runs a command in the box to its end, which has 60 seconds (scaled) to come.
    pub fn run(&self, cmd: impl Into<Cmd>) -> Finished {
        self.spawn(cmd).wait(Duration::from_secs(60))
    }

    /// Sends a signal to a process, or with a negative id to a group, by the ids inside the box.
    pub fn kill(&self, pid: i32, signal: i32) -> Result<(), nix::errno::Errno> {
        match self.channel.ask(|serial| Request::Kill { serial, pid, signal }).1 {
            Answer::Signalled { errno: 0 } => Ok(()),
            Answer::Signalled { errno } => Err(nix::errno::Errno::from_raw(errno)),
            answer => panic!("box {}: kill: {answer:?}", self.name),
        }
    }

    /// The id under which the test process sees the process `pid` of the box.
    pub fn outside_pid(&self, pid: i32) -> Option<i32> {
        process::outside(self.init, pid)
    }

    /// Every process in the box but its init, nested namespaces included.
    pub fn ps(&self) -> Vec<Process> {
        process::list(&self.root().join("proc"))
    }

    /// Whether the process has been sent a signal that it has not taken yet; false of one that is gone.
    pub fn is_pending(&self, pid: i32, signal: i32) -> bool {
        process::is_pending(&self.root().join("proc"), pid, signal)
    }

    /// Waits until the condition holds; fails with its name after `deadline` (scaled), or when the box has ended.
    pub fn wait_for(&self, what: &str, deadline: Duration, cond: impl FnMut() -> bool) {
        let given_up = wait::until(deadline, || self.channel.ended(), cond);
        if let Some(why) = given_up {
            panic!("box {}: waiting for {what}: {why}\n{}\n{}", self.name, self.ps_text(), self.said());
        }
    }

    /// Waits until none of the processes is left: what watches over another one ends a moment after it.
    pub fn wait_until_empty(&self, deadline: Duration) {
        self.wait_for("everybody to be gone", deadline, || self.ps().is_empty());
    }

    /// Says beforehand that this box leaves something of a kind behind, and why that is right.
    pub fn tolerate(&self, leak: Leak, _because: &str) {
        self.tolerated.lock().unwrap().push(leak);
    }

    fn base(&self) -> &Path {
        self.base.as_ref().expect("held until drop").path()
    }

    /// The last that each of the first and last commands has written to stderr, by its number.
    fn said(&self) -> String {
        const LAST: usize = 2000;
        const COMMANDS: usize = 8;
        let files = std::fs::read_dir(self.base().join("io")).into_iter().flatten().filter_map(Result::ok);
        let mut errors: Vec<PathBuf> = files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|e| e == "err"))
            .collect();
        errors.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
        let last = errors.len().saturating_sub(COMMANDS);
        let errors =
            errors.iter().enumerate().filter(|(at, _)| *at < COMMANDS || *at >= last).map(|(_, path)| path);
        let texts = errors.filter_map(|path| {
            let bytes = std::fs::read(path).ok().filter(|bytes| !bytes.is_empty())?;
            let last = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST)..]).into_owned();
            Some(format!("{}:\n{last}", path.file_name()?.display()))
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    fn ps_text(&self) -> String {
        let lines: Vec<String> = self.ps().iter().map(|process| format!("  {process}")).collect();
        format!("in the box:\n{}", lines.join("\n"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let tolerated = self.tolerated.lock().map(|list| list.clone()).unwrap_or_default();
        let mut left = match self.channel.finish(scaled(GRACE), tolerated.clone()) {
            Ok(found) => found,
            Err(why) => vec![(Leak::Box, why)],
        };
        self.channel.close();
        let _ = self.outer.wait();
        left.extend(self.before.compare(GRACE));
        left.retain(|(kind, _)| !tolerated.contains(kind));
        if std::env::var_os("CKPTBPF_KEEP_BOX").is_some() || (self.keeps && std::thread::panicking()) {
            let kept = self.base.take().map(tempfile::TempDir::keep);
            eprintln!("box {}: kept in {kept:?}", self.name);
        }
        if !left.is_empty() {
            let lines: Vec<String> = left.iter().map(|(kind, what)| format!("  {kind:?}: {what}")).collect();
            let report = format!("box {}: left behind:\n{}", self.name, lines.join("\n"));
            if std::thread::panicking() {
                eprintln!("{report}");
            } else {
                panic!("{report}");
            }
        }
    }
}

/// `box-init` stands beside the `deps` directory that test programs are built into.
fn init_program() -> PathBuf {
    let me = std::env::current_exe().expect("the path of the test program");
    me.ancestors()
        .skip(1)
        .take(3)
        .map(|folder| folder.join("box-init"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("no box-init near {}: build it with `cargo build --release -p ckpt-tests`", me.display())
        })
}

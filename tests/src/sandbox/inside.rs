//! The box's init: `box-init LIMIT_MS VISIBLE…`, standard input being the socket to the test.
//!
//! ```text
//! outer: new session, unshare ─▶ fork ─┬▶ outer waits for init, and is what the test waits for
//!                                      └▶ init (pid 1): mounts ─▶ poll { requests, SIGCHLD, time limit } ─▶ exit
//! ```
//! One thread, so that no child is ever waited for by two. Its exit kills whatever is in the namespace.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;

use super::wire::{Answer, Event, Order, Request};
use super::{keep, leaks, process};
use crate::sys;

/// What `box-init` does, from its first line to its last.
pub fn main() -> ExitCode {
    match outer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("box-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn outer() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let limit = args.next().and_then(|text| text.to_str()?.parse().ok()).context("the time limit in ms")?;
    let visible: Vec<PathBuf> = args.map(PathBuf::from).collect();
    let test = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    sys::keep_descriptors_to_ourselves().context("close_range")?;
    nix::unistd::setsid()?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    unshare(namespaces).context("new namespaces")?;
    sys::loopback_up().context("the loopback interface")?;
    match sys::fork_single_threaded()? {
        ForkResult::Parent { child } => {
            tell(&test, &Event::Init { pid: child.as_raw() })?;
            drop(test);
            waitpid(child, None)?;
            Ok(())
        }
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Init::stand(test, Duration::from_millis(limit), &visible)?.serve()
        }
    }
}

fn tell(test: &UnixStream, event: &Event) -> Result<()> {
    let line = serde_json::to_string(event)? + "\n";
    let mut stream = test;
    Ok(stream.write_all(line.as_bytes())?)
}

/// A private /proc, and an empty tmpfs wherever a test could leave something.
fn mount_all(visible: &[PathBuf]) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, none).context("mounting /proc")?;
    let kept = keep::hold(visible)?;
    let cached = leaks::cached();
    for (folder, mode) in keep::PRIVATE.iter().zip(["mode=1777", "mode=755", "mode=1777"]) {
        mount(Some("tmpfs"), *folder, Some("tmpfs"), safe, Some(mode))
            .with_context(|| format!("mounting {folder}"))?;
    }
    leaks::show_cached(cached).context("the kernel's offsets")?;
    kept.into_iter().try_for_each(keep::Kept::show)
}

struct Init {
    test: UnixStream,
    children: HashMap<i32, u64>,
    signals: SignalFd,
    mounts: BTreeSet<String>,
    limit: Duration,
    end: Instant,
}

impl Init {
    fn stand(test: UnixStream, limit: Duration, visible: &[PathBuf]) -> Result<Self> {
        mount_all(visible)?;
        let mut child = SigSet::empty();
        child.add(Signal::SIGCHLD);
        child.thread_block()?;
        let signals = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mounts = leaks::mounts();
        let init =
            Self { test, children: HashMap::new(), signals, mounts, limit, end: Instant::now() + limit };
        tell(&init.test, &Event::Ready)?;
        Ok(init)
    }

    /// Serves until the test closes its end or the time is over.
    fn serve(mut self) -> Result<()> {
        let mut input = BufReader::new(self.test.try_clone()?);
        loop {
            let Some(left) = self.end.checked_duration_since(Instant::now()) else {
                return self.time_is_over();
            };
            let (request, child) = self.wait(left)?;
            if child {
                self.reap()?;
            }
            let mut is_more = request;
            while is_more {
                // The test writes whole lines, so this waits for no more than the rest of one.
                let mut line = String::new();
                if input.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                let (serial, answer) = self.answer(serde_json::from_str(&line)?)?;
                tell(&self.test, &Event::Answer { serial, answer })?;
                self.reap()?;
                // What threads of the test have asked for at once is read at once, and no poll tells of it any more.
                is_more = !input.buffer().is_empty();
            }
        }
    }

    /// Waits for input or for the end of a child: whether there is input, whether a child has ended.
    fn wait(&self, at_most: Duration) -> Result<(bool, bool)> {
        let timeout = PollTimeout::try_from(at_most.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let watched = [self.test.as_fd(), self.signals.as_fd()];
        let mut fds = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [request, child] = fds.map(|fd| fd.any().unwrap_or(false));
        Ok((request, child))
    }

    fn answer(&mut self, request: Request) -> Result<(u64, Answer)> {
        Ok(match request {
            Request::Spawn(order) => (order.serial, self.spawn(&order)),
            Request::Kill { serial, pid, signal } => {
                (serial, Answer::Signalled { errno: sys::kill(pid, signal).err().unwrap_or(0) })
            }
            Request::Finish { serial, grace_ms, tolerated } => {
                let found = self.left_behind(Duration::from_millis(grace_ms), &tolerated)?;
                (serial, Answer::Left { found })
            }
        })
    }

    fn spawn(&mut self, order: &Order) -> Answer {
        match start(order) {
            Ok(pid) => {
                self.children.insert(pid, order.serial);
                Answer::Spawned { pid }
            }
            Err(error) => Answer::Refused { error: format!("{error:#}") },
        }
    }

    /// Reaps whatever has ended, orphans included.
    fn reap(&mut self) -> Result<()> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, status)) = sys::reap() {
            if let Some(serial) = self.children.remove(&pid) {
                tell(&self.test, &Event::Exited { serial, status })?;
            }
        }
        Ok(())
    }

    fn left_behind(
        &mut self,
        grace: Duration,
        tolerated: &[leaks::Leak],
    ) -> Result<Vec<(leaks::Leak, String)>> {
        let until = Instant::now() + grace;
        loop {
            self.reap()?;
            let mut found = leaks::inside(&self.mounts);
            found.retain(|(kind, _)| !tolerated.contains(kind));
            if found.is_empty() || Instant::now() > until {
                return Ok(found);
            }
            self.wait(Duration::from_millis(5))?;
        }
    }

    fn time_is_over(&self) -> Result<()> {
        let processes = process::list(Path::new("/proc")).iter().map(ToString::to_string).collect();
        let after_ms = u64::try_from(self.limit.as_millis())?;
        tell(&self.test, &Event::TimeLimit { after_ms, processes })
    }
}

fn start(order: &Order) -> Result<i32> {
    let (program, args) = order.argv.split_first().context("an empty command")?;
    // To open one waits for the other end, and init would hear of nothing meanwhile, not even that its test is over.
    let is_fifo = |path: &Path| path.metadata().is_ok_and(|found| found.file_type().is_fifo());
    for stream in [&order.stdin, &order.stdout, &order.stderr] {
        anyhow::ensure!(!is_fifo(stream), "{} is a FIFO: have the command open it", stream.display());
    }
    let stdin = File::open(&order.stdin).with_context(|| format!("opening {}", order.stdin.display()))?;
    let mut command = Command::new(program);
    command.args(args).current_dir(&order.cwd).stdin(stdin);
    command.stdout(File::create(&order.stdout)?).stderr(File::create(&order.stderr)?);
    for (name, value) in &order.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.process_group(0);
    sys::start_with_default_signals(&mut command);
    let child = command.spawn().with_context(|| program.clone())?;
    Ok(i32::try_from(child.id())?)
}

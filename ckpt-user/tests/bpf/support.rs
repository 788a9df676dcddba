//! What these tests share. They wait for conditions, never for time to pass.
use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ckptbpf::sys::bpf::{Bpf, LifecycleEvent, LifecycleKind};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Nothing that a test waits for takes longer on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A child that is killed and reaped when the test is over.
pub struct Victim(pub Child);

impl Victim {
    /// `sleep 1000`, once it sleeps.
    pub fn sleeper() -> Self {
        let victim = Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
        // clock_nanosleep(2) is 230 on x86-64, nanosleep(2) 35.
        wait_until("sleep sleeps", || {
            let call = fs::read_to_string(format!("/proc/{}/syscall", victim.id())).unwrap();
            call.starts_with("230 ") || call.starts_with("35 ")
        });
        victim
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Collects events until one is what is waited for; gives all of them.
pub fn events_until(
    bpf: &mut Bpf,
    what: &str,
    wanted: impl Fn(&LifecycleEvent) -> bool,
) -> Vec<LifecycleEvent> {
    let start = Instant::now();
    let mut seen = Vec::new();
    loop {
        seen.extend(bpf.lifecycle());
        if seen.iter().any(&wanted) {
            return seen;
        }
        assert!(start.elapsed() < DEADLINE, "timed out: {what}; seen: {seen:?}");
        let mut fds = [PollFd::new(bpf.lifecycle_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
    }
}

pub fn is(event: &LifecycleEvent, kind: LifecycleKind, tgid: u32) -> bool {
    event.what() == Some(kind) && event.tgid == tgid
}

/// A line of `/proc/PID/status`, the part after the colon.
pub fn status(pid: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

/// A mask in `/proc/PID/status`.
pub fn mask(pid: &str, name: &str) -> u64 {
    u64::from_str_radix(&status(pid, name), 16).unwrap()
}

/// The single letter of the task's state.
pub fn state(pid: u32) -> char {
    status(&pid.to_string(), "State").chars().next().unwrap()
}

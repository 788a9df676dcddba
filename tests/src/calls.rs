//! The system calls of a process, one by one: what happens if something dies right before one of them?

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A deed, done once.
pub type Deed = Box<dyn FnOnce() + Send>;

/// Follows every thread of a process, until that has ended.
pub struct Calls {
    seen: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    tracer: JoinHandle<()>,
}

/// From where on calls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Now,
    /// From the next execve(2).
    Exec,
}

impl Calls {
    /// Counts the calls that process `pid` (as seen from here) enters; does `deed` right before number `at`, from 1.
    /// Returns once every thread is followed.
    pub fn of(pid: i32, from: From, at: u64, deed: Deed) -> Self {
        let (seen, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let follower = Follower {
            seen: seen.clone(),
            done: done.clone(),
            counts: from == From::Now,
            at,
            deed: Some(deed),
        };
        let tracer = std::thread::spawn(move || {
            seize_all(pid);
            ready.send(()).expect("the test waits");
            follower.follow();
        });
        is_ready.recv().expect("the process can be traced");
        Self { seen, done, tracer }
    }

    /// How many there were so far.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// Whether the deed is done.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits for the end of the process; whether the deed was done.
    pub fn end(self) -> bool {
        self.tracer.join().expect("the tracer's thread");
        self.done.load(Ordering::SeqCst)
    }
}

/// A thread that ends meanwhile is none to follow; one that appears is found, or comes with the one that made it.
fn seize_all(pid: i32) {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC;
    let mut found = true;
    while found {
        found = false;
        for entry in
            std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).into_iter().flatten()
        {
            let tid =
                entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
            if let Some(tid) = tid
                && ptrace::seize(tid, options).is_ok()
            {
                found = true;
                let _ = ptrace::interrupt(tid);
            }
        }
    }
}

struct Follower {
    seen: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    counts: bool,
    at: u64,
    deed: Option<Deed>,
}

impl Follower {
    fn follow(mut self) {
        // Of this thread's tracees alone: the box's own process is another's to wait for.
        let any = || waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD));
        loop {
            let (tid, signal) = match any() {
                Ok(WaitStatus::PtraceSyscall(tid)) => {
                    self.call(tid);
                    (tid, None)
                }
                Ok(WaitStatus::PtraceEvent(tid, _, event)) => {
                    self.counts |= event == nix::libc::PTRACE_EVENT_EXEC;
                    (tid, None)
                }
                Ok(WaitStatus::Stopped(tid, signal)) => (tid, Some(signal)),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return,
                Err(error) => panic!("waiting for the traced process: {error}"),
            };
            // It may have been killed.
            let _ = ptrace::syscall(tid, signal);
        }
    }

    fn call(&mut self, tid: Pid) {
        // Until the call is made, its result is ENOSYS.
        let is_entry =
            ptrace::getregs(tid).is_ok_and(|regs| regs.rax as i64 == -i64::from(nix::libc::ENOSYS));
        if !is_entry || !self.counts {
            return;
        }
        if self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.at
            && let Some(deed) = self.deed.take()
        {
            deed();
            self.done.store(true, Ordering::SeqCst);
        }
    }
}

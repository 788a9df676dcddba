//! The system calls of a process, one by one: what happens if something dies right before one of them?

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{PTRACE_INTERRUPT, PTRACE_SEIZE, PTRACE_SYSCALL, SYS_bind, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sandbox::scaled;

/// A deed, done once.
pub type Deed = Box<dyn FnOnce() + Send>;

/// Follows every thread of a process, until that has ended.
pub struct Calls {
    seen: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    tracer: JoinHandle<()>,
}

/// A kind of calls, by the registers at their entry.
pub type Kind = fn(&user_regs_struct) -> bool;

/// A thread is asked to stop: ckptbpf's freeze begins.
pub fn interrupts(regs: &user_regs_struct) -> bool {
    traces(regs, PTRACE_INTERRUPT)
}

/// Any call.
pub fn any(_: &user_regs_struct) -> bool {
    true
}

/// A thread is let go to the entry, or to the end, of a call that ckptbpf has it make.
pub fn injects(regs: &user_regs_struct) -> bool {
    traces(regs, PTRACE_SYSCALL)
}

/// A thread has its signals held up, or let go again, or is let go to a call or its end.
pub fn holds_up(regs: &user_regs_struct) -> bool {
    const PTRACE_SETSIGMASK: u32 = 0x420b;
    traces(regs, PTRACE_SETSIGMASK) || injects(regs)
}

/// A process is about to be traced.
pub fn seizes(regs: &user_regs_struct) -> bool {
    traces(regs, PTRACE_SEIZE)
}

/// Pages of a process are looked at (PAGEMAP_SCAN).
pub fn scans(regs: &user_regs_struct) -> bool {
    controls(regs, 0xc060_6610)
}

/// A socket gets its name: ckptbpf's control socket.
pub fn binds(regs: &user_regs_struct) -> bool {
    is(regs, SYS_bind)
}

/// A process is to be the parent of its orphaned descendants: what ckptbpf does right before it starts a program.
pub fn adopts(regs: &user_regs_struct) -> bool {
    is(regs, nix::libc::SYS_prctl) && regs.rdi == nix::libc::PR_SET_CHILD_SUBREAPER as u64
}

fn is(regs: &user_regs_struct, number: i64) -> bool {
    regs.orig_rax == number.cast_unsigned()
}

fn traces(regs: &user_regs_struct, request: u32) -> bool {
    is(regs, nix::libc::SYS_ptrace) && regs.rdi == u64::from(request)
}

fn controls(regs: &user_regs_struct, request: u64) -> bool {
    is(regs, nix::libc::SYS_ioctl) && regs.rsi == request
}

/// What each phase of a checkpoint of ckptbpf does at least once, in the order of time. Numbers of ioctls are those of
/// linux/fs.h and linux/userfaultfd.h.
pub const OF_A_CHECKPOINT: &[(&str, Kind)] = &[
    ("the scan", scans),
    ("the copy", |regs| is(regs, nix::libc::SYS_process_vm_readv)),
    ("the freeze", interrupts),
    ("the capture", |regs| traces(regs, nix::libc::PTRACE_GETREGS)),
    ("the thaw", |regs| traces(regs, nix::libc::PTRACE_DETACH)),
    ("the last block", |regs| is(regs, nix::libc::SYS_write) && regs.rdx >= 4096),
    ("the data's way to the disk", |regs| is(regs, nix::libc::SYS_fdatasync)),
    ("the name", |regs| is(regs, nix::libc::SYS_renameat2)),
    ("the name's way to the disk", |regs| is(regs, nix::libc::SYS_fsync)),
];

/// The same of a restart.
pub const OF_A_RESTART: &[(&str, Kind)] = &[
    ("the look at the chain", |regs| is(regs, nix::libc::SYS_pread64)),
    ("the first process", |regs| is(regs, nix::libc::SYS_clone3)),
    ("the first call of a process", |regs| is(regs, nix::libc::SYS_process_vm_writev)),
    ("the fill", |regs| controls(regs, 0xc028_aa03)),
    ("the registers", |regs| traces(regs, nix::libc::PTRACE_SETREGS)),
    ("the resumption", |regs| traces(regs, nix::libc::PTRACE_DETACH)),
];

/// A process that is held before a call.
pub struct Held {
    reached: Receiver<()>,
    go: Sender<()>,
}

impl Held {
    /// Until it is there.
    pub fn wait(&self) {
        let patience = scaled(Duration::from_secs(30));
        self.reached.recv_timeout(patience).expect("the process comes to that call");
    }

    /// It makes the call, and goes on.
    pub fn let_go(self) {
        self.go.send(()).expect("it is held");
    }
}

/// From where on calls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Now,
    /// From the next execve(2).
    Exec,
}

impl Calls {
    /// Right before the first call of a kind.
    pub fn before(pid: i32, from: From, kind: Kind, deed: Deed) -> Self {
        Self::of(pid, from, (kind, 1), deed)
    }

    /// Right before the first call of a kind, all threads of the process are held, each at its next call.
    pub fn held_before(pid: i32, from: From, kind: Kind) -> (Self, Held) {
        let (reach, reached) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let deed = move || {
            let _ = reach.send(());
            // A test that fails meanwhile lets go, too.
            let _ = gone.recv();
        };
        (Self::before(pid, from, kind, Box::new(deed)), Held { reached, go })
    }

    /// Counts the calls of a kind that process `pid` (as seen from here) enters; does `deed` right before number `at` of them,
    /// from 1. Returns once every thread is followed.
    pub fn of(pid: i32, from: From, (kind, at): (Kind, u64), deed: Deed) -> Self {
        let (seen, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let follower = Follower {
            seen: seen.clone(),
            done: done.clone(),
            counts: from == From::Now,
            kind,
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
    kind: Kind,
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
            // It may have been killed. After the deed nobody counts.
            let _ =
                if self.deed.is_some() { ptrace::syscall(tid, signal) } else { ptrace::cont(tid, signal) };
        }
    }

    fn call(&mut self, tid: Pid) {
        // Until the call is made, its result is ENOSYS.
        let Ok(regs) = ptrace::getregs(tid) else { return };
        if regs.rax as i64 != -i64::from(nix::libc::ENOSYS) || !self.counts || !(self.kind)(&regs) {
            return;
        }
        let number = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
        if number == self.at
            && let Some(deed) = self.deed.take()
        {
            deed();
            self.done.store(true, Ordering::SeqCst);
        }
    }
}

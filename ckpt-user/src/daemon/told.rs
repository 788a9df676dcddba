//! A worker's way to its core's eBPF programs ([`super::questions`]).
//!
//! ```text
//! core ── a connection, at the worker's start ──▶ worker          the core is gone:
//!                                                 worker ── Programs ──▶ front ── Hello{programs} ──▶ another core
//!                                                        ◀── Programs, the connection ──
//! ```
//! A front has its namespaces still, and is judged by that core as any client; the worker may be in those of a restarted program.

use super::link::{Link, Word};
use super::questions::{self, ASK, Answer, Ask, LESSONS, MOST, OBJECT};
use super::wire;
use crate::sys::bpf::BpfError;
use crate::sys::packet;
use crate::sys::pidfd;
use crate::task::iterators::lessons::Lessons;
use crate::task::iterators::rows::{Question, Rows};
use nix::sys::socket::{MsgFlags, Shutdown, shutdown};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use zerocopy::IntoBytes;

/// The connection of this worker, and of those that it forks; none once its core is gone.
static CORE: Mutex<Option<Arc<OwnedFd>>> = Mutex::new(None);

/// Who asks another core for one. Of a worker that had a connection.
static FRONT: OnceLock<Arc<Link>> = OnceLock::new();

/// There is another connection than when it was asked last ([`is_another`]).
static IS_ANOTHER: AtomicBool = AtomicBool::new(false);

/// The front has been asked, and has not answered yet.
static IS_ASKED: AtomicBool = AtomicBool::new(false);

static ASKING: Mutex<()> = Mutex::new(());

/// Of the last question of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

fn core() -> MutexGuard<'static, Option<Arc<OwnedFd>>> {
    CORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes the connection that this worker was started with, and its front.
pub fn note_core(connection: OwnedFd, front: &Arc<Link>) {
    FRONT.get_or_init(|| front.clone());
    *core() = Some(Arc::new(connection));
}

/// Notes the front's answer: a connection with another core, or that there is none now.
pub fn note_another(connection: Option<OwnedFd>) {
    if let Some(connection) = connection {
        *core() = Some(Arc::new(connection));
        IS_ANOTHER.store(true, Ordering::Relaxed);
    }
    IS_ASKED.store(false, Ordering::Relaxed);
}

/// Whether there is another core than when this was asked last.
pub fn is_another() -> bool {
    IS_ANOTHER.swap(false, Ordering::Relaxed)
}

/// Has the front ask for another core where there is none any more. Its answer comes when it may ([`note_another`]).
pub fn ask_for_another() {
    if let Some(front) = FRONT.get().filter(|_| core().is_none())
        && !IS_ASKED.swap(true, Ordering::Relaxed)
    {
        // One that is gone is noticed by the supervisor.
        let _ = front.say(&Word::Programs(true), &[]);
    }
}

/// A core that tells.
#[derive(Debug)]
pub struct Told {
    core: Arc<OwnedFd>,
    /// Of this process.
    own: OwnedFd,
}

impl Told {
    /// # Errors
    /// The core has no programs.
    pub fn by_core() -> io::Result<Self> {
        let none = || io::Error::other("it has none; its log says why");
        Ok(Self { core: core().clone().ok_or_else(none)?, own: pidfd::open(Pid::this())? })
    }

    /// What this kernel's words mean.
    ///
    /// # Errors
    /// The core does not tell.
    pub fn lessons(&self) -> io::Result<Lessons> {
        let bytes = self.answer(Ask::of(LESSONS), &[])??.bytes;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "its lessons cannot be understood");
        Lessons::parse(&bytes).ok_or_else(wrong)
    }

    /// The answer to a question about processes that this one traces. Of one that is gone there is none.
    ///
    /// # Errors
    /// [`BpfError::Daemon`]: nothing more is to be had; or, of kind `TimedOut`, not now.
    pub fn ask(&self, pids: &[Pid], question: Question) -> Result<Rows, BpfError> {
        let mut all = Rows::default();
        for some in pids.chunks(MOST) {
            let processes: Vec<Option<OwnedFd>> = some.iter().map(|pid| pidfd::open(*pid).ok()).collect();
            let there: Vec<BorrowedFd<'_>> = processes.iter().flatten().map(AsFd::as_fd).collect();
            let answer = self.answer(Ask::of(question as u32), &there).map_err(BpfError::Daemon)?;
            let failed = |source| BpfError::Iterator { program: "of the daemon", source };
            let mut rows = Rows::parse(&answer.map_err(failed)?.bytes)
                .ok_or_else(|| BpfError::Daemon(io::ErrorKind::InvalidData.into()))?;
            let mut hosts = std::mem::take(&mut rows.hosts).into_iter();
            let host = |process: &Option<OwnedFd>| process.as_ref().and_then(|_| hosts.next()).unwrap_or(0);
            rows.hosts = processes.iter().map(host).collect();
            all.append(rows);
        }
        Ok(all)
    }

    fn answer(&self, ask: Ask, about: &[BorrowedFd<'_>]) -> io::Result<Result<Answer, io::Error>> {
        let _one_at_a_time = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that it forks have the same connection, and other numbers.
        let count = NUMBER.fetch_add(1, Ordering::Relaxed) & u64::from(u32::MAX);
        let number = u64::from(std::process::id()) << 32 | count;
        let message = wire::join(ASK, Ask { number, ..ask }.as_bytes());
        let with = [&[self.own.as_fd()], about].concat();
        let heard = packet::send(self.core.as_fd(), &message, &with, MsgFlags::MSG_DONTWAIT)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it is not heard"),
                _ => error,
            })
            .and_then(|()| questions::hear(&self.core, number));
        if heard.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::TimedOut) {
            self.is_gone();
        }
        heard
    }

    fn is_gone(&self) {
        let _ = shutdown(self.core.as_raw_fd(), Shutdown::Both);
        drop(core().take_if(|core| Arc::ptr_eq(core, &self.core)));
        ask_for_another();
    }
}

/// The shared memory behind a mapping of a process that this one traces, to be read ([`super::object`]); none in a process that is
/// no worker.
///
/// # Errors
/// The core does not open it.
pub fn object(pid: Pid, mapping: Range<u64>) -> io::Result<Option<File>> {
    if core().is_none() {
        return Ok(None);
    }
    let process = pidfd::open(pid)?;
    let ask = Ask { start: mapping.start, end: mapping.end, ..Ask::of(OBJECT) };
    let answer = Told::by_core()?.answer(ask, &[process.as_fd()])??;
    answer.descriptor.map(|fd| Some(fd.into())).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

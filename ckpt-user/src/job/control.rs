//! The control socket of a running job: `ckptbpf checkpoint` and `ckptbpf status` ask, the supervisor answers.
//!
//! ```text
//! client ── one line of JSON (≤ 4 KiB) ──▶ a thread a client ── ControlRequest over mpsc ──▶ supervisor
//!        ◀── one line of JSON ────────────                 ◀── ReplyTo ──────────────────── (woken by an eventfd)
//! ```
//! Only the job's user and root are heard (SO_PEERCRED). No client can hold the supervisor up: each has a thread
//! of its own, lengths and times are bounded, and what is not understood gets an error as its answer. A request
//! that the supervisor drops unanswered is answered with an error, too.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sys::{ids, socket};
use crate::task::outside;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use super::registry;
use super::runtime_dir::RuntimeDir;

/// The longest request or reply, its newline included.
pub const LINE_LIMIT: usize = 4096;
/// How long a client may take to send its line, or to take its reply.
const CLIENT_TIME: Duration = Duration::from_secs(5);
/// How long the end of the supervisor waits for answers to be written.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Clients at a time; more are told to come again.
const CLIENTS: usize = 64;
/// Of a daemon's worker: each has a thread, and workers of all users share what the daemon may have.
const CLIENTS_OF_WORKER: usize = 16;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// A checkpoint now; answered when it is durable.
    Checkpoint {
        /// The checkpoint is also the end.
        #[serde(default)]
        kill: bool,
    },
    /// How the job is.
    Status,
    /// Another time between checkpoints, answered with the state.
    Interval {
        /// 0: on request only.
        microseconds: u64,
    },
    /// The end of all of the program's processes, without a checkpoint; answered with the state before.
    Kill,
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// It did not work, and why.
    Error {
        /// For the person to read, with what to do next.
        error: String,
    },
    /// The checkpoint is durable.
    Checkpoint(CheckpointDone),
    /// The job's state.
    Status(JobStatus),
}

/// A durable checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointDone {
    /// Always true.
    pub ok: bool,
    /// Number of the generation.
    pub id: u64,
    /// The generation it is a delta to.
    pub parent: Option<u64>,
    /// `full` or `delta`.
    pub kind: String,
    /// How long the program stood still, in microseconds.
    pub freeze_us: u64,
    /// From the request to the rename, in microseconds.
    pub elapsed_us: u64,
    /// Pages in it.
    pub pages: u64,
    /// Bytes on disk.
    pub bytes_stored: u64,
    /// Whether the program was ended with it.
    pub killed: bool,
}

/// A running job as its supervisor sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Always true.
    pub ok: bool,
    /// First process of the program.
    pub pid: i32,
    /// Processes in the tree.
    pub processes: u64,
    /// Seconds between checkpoints; none: on request only.
    pub interval_s: Option<f64>,
    /// Newest durable generation.
    pub last_id: Option<u64>,
    /// Its age in seconds.
    pub last_age_s: Option<f64>,
    /// Durable checkpoints of this run.
    pub checkpoints: u64,
    /// Failed ones in a row.
    pub failures: u64,
    /// Why the last one failed.
    pub last_error: Option<String>,
    /// Whether one is being taken or written now.
    pub busy: bool,
    /// Pages of a lazy restart that have not arrived yet.
    pub pages_missing: Option<u64>,
}

/// Where an answer goes.
#[derive(Debug)]
pub struct ReplyTo(mpsc::SyncSender<Reply>);

impl ReplyTo {
    /// Answers; a client that is gone does not matter.
    pub fn send(self, reply: Reply) {
        let _ = self.0.try_send(reply);
    }
}

/// A request with the way back.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked for.
    pub kind: Request,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

/// What can go wrong with a control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be made.
    #[error(
        "{path}: cannot make the control socket; `ckptbpf checkpoint` and `status` would not reach this job"
    )]
    Bind {
        /// The socket.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error("{path}: no ckptbpf answers there; is the job still supervised? (ckptbpf status)")]
    Connect {
        /// The socket.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("{path}: the supervisor went away before it answered; look at its output and at events.jsonl")]
    Gone {
        /// The socket.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not a reply.
    #[error("{path}: the answer is not one of this version's; is the supervisor another version of ckptbpf?")]
    NotUnderstood {
        /// The socket.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Somebody else has bound it.
    #[error("{path}: process {by} answers there, and not the job's supervisor")]
    NotTheSupervisor {
        /// The socket.
        path: String,
        /// Who it is.
        by: i32,
    },
    /// The supervisor says no.
    #[error("{0}")]
    Refused(String),
}

/// The supervisor's end. The socket is removed when it is dropped.
#[derive(Debug)]
pub struct Control {
    runtime: Arc<RuntimeDir>,
    name: String,
    requests: mpsc::Receiver<ControlRequest>,
    wake: Arc<EventFd>,
    stop: Arc<EventFd>,
    pending: Arc<AtomicUsize>,
    acceptor: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens at `name` in the runtime directory; only its owner and root are answered.
    ///
    /// The threads it starts block every signal, so that none meant for the supervisor ends up there.
    pub fn bind(runtime: &Arc<RuntimeDir>, name: &str) -> Result<Self, ControlError> {
        let path = runtime.path().join(name).display().to_string();
        let fail = |source: io::Error| ControlError::Bind { path: path.clone(), source };
        let listener = {
            let _as = runtime.assume().map_err(fail)?;
            // Left over by one that was killed: its name has this pid and start time only if it was ours.
            let _ = std::fs::remove_file(runtime.reach(name));
            UnixListener::bind(runtime.reach(name)).map_err(fail)?
        };
        listener.set_nonblocking(true).map_err(fail)?;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(event().map_err(|errno| fail(errno.into()))?);
        let stop = Arc::new(event().map_err(|errno| fail(errno.into()))?);
        let (sender, requests) = mpsc::channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let (owner, clients) = (runtime.ids().uid, Arc::default());
        let server = Server { owner, sender, wake: wake.clone(), clients, pending: pending.clone() };
        let (stopped, blocked) = (stop.clone(), SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK));
        let acceptor = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || server.accept(&listener, &stopped));
        if let Ok(mask) = blocked {
            let _ = mask.thread_set_mask();
        }
        let acceptor = Some(acceptor.map_err(fail)?);
        Ok(Self { runtime: runtime.clone(), name: name.to_owned(), requests, wake, stop, pending, acceptor })
    }

    /// Where clients find it.
    pub fn socket_path(&self) -> PathBuf {
        self.runtime.path().join(&self.name)
    }

    /// Readable while a request waits: for the supervisor's poll(2).
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The next request, if one waits.
    pub fn try_recv(&self) -> Option<ControlRequest> {
        if let Ok(request) = self.requests.try_recv() {
            return Some(request);
        }
        // Cleared only when the queue looked empty; what came in between is seen by the second look.
        let _ = self.wake.read();
        self.requests.try_recv().ok()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        // Answers on their way still arrive: a checkpoint that ends the job is reported to who asked for it.
        let deadline = Instant::now() + LAST_ANSWERS;
        while self.pending.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            while self.requests.try_recv().is_ok() {}
            std::thread::sleep(Duration::from_millis(1));
        }
        self.runtime.remove(&self.name);
    }
}

/// What each client's thread shares.
#[derive(Clone)]
struct Server {
    owner: u32,
    sender: mpsc::Sender<ControlRequest>,
    wake: Arc<EventFd>,
    clients: Arc<AtomicUsize>,
    /// Requests that the supervisor has and whose answers are not yet written.
    pending: Arc<AtomicUsize>,
}

impl Server {
    fn accept(&self, listener: &UnixListener, stop: &EventFd) {
        loop {
            let mut ready = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            if ready[0].any().unwrap_or(false) {
                return;
            }
            match listener.accept() {
                Ok((client, _)) => self.clone().welcome(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Out of descriptors, say: do not spin until it passes.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn welcome(self, mut client: UnixStream) {
        let count = self.clients.clone();
        let most = if registry::front().is_some() { CLIENTS_OF_WORKER } else { CLIENTS };
        if count.fetch_add(1, Ordering::Relaxed) >= most {
            count.fetch_sub(1, Ordering::Relaxed);
            let _ = client.set_nonblocking(true);
            answer(&mut client, &error("too many requests at once; ask again"));
            return;
        }
        let spawned = std::thread::Builder::new().name("control client".into()).spawn(move || {
            self.serve(client);
            self.clients.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn serve(&self, mut client: UnixStream) {
        let _ = client.set_nonblocking(false);
        let _ = client.set_write_timeout(Some(CLIENT_TIME));
        let peer = getsockopt(&client, PeerCredentials).map(|peer| peer.uid());
        let request = match peer {
            // The socket is in a directory that nobody else may enter.
            Ok(uid) if uid == self.owner || ids::is_root(uid) => Self::hear(&mut client),
            _ => Err(error("this job is another user's")),
        };
        let request = match request {
            Ok(request) => request,
            Err(refusal) => return answer(&mut client, &refusal),
        };
        self.pending.fetch_add(1, Ordering::Release);
        answer(&mut client, &self.ask(request));
        self.pending.fetch_sub(1, Ordering::Release);
    }

    fn hear(client: &mut UnixStream) -> Result<Request, Reply> {
        let line =
            read_line(client, Some(CLIENT_TIME)).map_err(|why| error(&format!("no request: {why}")))?;
        serde_json::from_slice(&line).map_err(|why| error(&format!("not a request of this version: {why}")))
    }

    fn ask(&self, kind: Request) -> Reply {
        let (reply, answers) = mpsc::sync_channel(1);
        if self.sender.send(ControlRequest { kind, reply: ReplyTo(reply) }).is_err() {
            return error(TOO_LATE);
        }
        let _ = self.wake.write(1);
        answers.recv().unwrap_or_else(|_| error(TOO_LATE))
    }
}

const TOO_LATE: &str = "the job has ended before the request was done; ckptbpf list shows its checkpoints, and ckptbpf restart \
                        goes on from the last";

fn error(text: &str) -> Reply {
    Reply::Error { error: text.to_owned() }
}

fn answer(client: &mut UnixStream, reply: &Reply) {
    let mut reply = reply.clone();
    if let Reply::Error { error } | Reply::Status(JobStatus { last_error: Some(error), .. }) = &mut reply {
        // Escaped, a byte takes up to six; the line must stay within the limit.
        error.truncate(error.floor_char_boundary(LINE_LIMIT / 8));
    }
    if let Ok(mut line) = serde_json::to_vec(&reply) {
        line.push(b'\n');
        let _ = client.write_all(&line);
    }
}

/// Reads up to a newline: at most [`LINE_LIMIT`] bytes, within `time` altogether.
pub(crate) fn read_line(stream: &mut UnixStream, time: Option<Duration>) -> io::Result<Vec<u8>> {
    let deadline = time.map(|time| Instant::now() + time);
    let mut line = Vec::new();
    let mut block = [0; 512];
    loop {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
        }
        let count = match stream.read(&mut block) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let read = block.get(..count).unwrap_or_default();
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(read.get(..end).unwrap_or_default());
            return if line.len() < LINE_LIMIT { Ok(line) } else { Err(too_long()) };
        }
        line.extend_from_slice(read);
        if line.len() >= LINE_LIMIT {
            return Err(too_long());
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a line is longer than {LINE_LIMIT} bytes"))
}

/// Asks a job's supervisor, which is to be `supervisor` if that is given, as [`ProcessId`] has it. Waits for a checkpoint as long
/// as the supervisor lives; for anything else 5 s.
///
/// An answer of `{"error": …}` comes back as [`ControlError::Refused`].
///
/// [`ProcessId`]: super::process::ProcessId
pub fn request(path: &Path, request: &Request, supervisor: Option<i32>) -> Result<Reply, ControlError> {
    let shown = path.display().to_string();
    let gone = |source| ControlError::Gone { path: shown.clone(), source };
    // Whoever may listen there may also have the queue full, and nobody who takes anything out of it.
    let connected = socket::connect_within(path, libc::SOCK_STREAM, CLIENT_TIME);
    let mut stream = connected
        .map(UnixStream::from)
        .map_err(|source| ControlError::Connect { path: shown.clone(), source })?;
    // As it was when it began to listen.
    let by = getsockopt(&stream, PeerCredentials).map_err(|errno| gone(errno.into()))?.pid();
    if supervisor.is_some_and(|pid| outside::known_as(by).ok() != Some(pid)) {
        return Err(ControlError::NotTheSupervisor { path: shown.clone(), by });
    }
    let not_understood = |source| ControlError::NotUnderstood { path: shown.clone(), source };
    let mut line = serde_json::to_vec(request).map_err(not_understood)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(gone)?;
    let time = match request {
        Request::Checkpoint { .. } => None,
        Request::Status | Request::Interval { .. } | Request::Kill => Some(CLIENT_TIME),
    };
    let line = read_line(&mut stream, time).map_err(gone)?;
    match serde_json::from_slice(&line).map_err(not_understood)? {
        Reply::Error { error } => Err(ControlError::Refused(error)),
        reply => Ok(reply),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

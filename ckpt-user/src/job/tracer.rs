//! The way onto the tracer's thread: ptrace obeys only the thread that seized, so everything between seize and
//! detach runs there, whoever wants it.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};

type Task = Box<dyn FnOnce() + Send>;

/// Held by those who want something done on the tracer's thread.
#[derive(Debug, Clone)]
pub struct Tracer {
    tasks: mpsc::Sender<Task>,
    wake: Arc<EventFd>,
}

/// Held by the tracer's thread.
#[derive(Debug)]
pub struct Tasks {
    tasks: mpsc::Receiver<Task>,
    wake: Arc<EventFd>,
}

/// Both ends.
pub fn channel() -> io::Result<(Tracer, Tasks)> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (sender, tasks) = mpsc::channel();
    Ok((Tracer { tasks: sender, wake: wake.clone() }, Tasks { tasks, wake }))
}

impl Tracer {
    /// Runs `work` on the tracer's thread and waits for its result; `None` when that thread is gone.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, result) = mpsc::sync_channel(1);
        self.post(move || drop(sender.send(work())))?;
        result.recv().ok()
    }

    /// Has `work` done on the tracer's thread without waiting; `None` when that thread is gone.
    pub fn post(&self, work: impl FnOnce() + Send + 'static) -> Option<()> {
        self.tasks.send(Box::new(work)).ok()?;
        self.wake.write(1).ok().map(drop)
    }
}

impl Tasks {
    /// Readable while a task waits.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Waits shortly for a task.
    pub fn wait(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.wake_fd(), PollFlags::POLLIN)];
        // Woken or not, the caller looks again.
        let _ = poll(&mut fds, PollTimeout::from(20u8));
    }

    /// Runs what waits.
    pub fn run_all(&self) {
        let _ = self.wake.read();
        while let Ok(task) = self.tasks.try_recv() {
            task();
        }
    }
}

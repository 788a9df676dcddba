//! The thread that makes a job's checkpoints, one at a time. What it has made it tells at once; then it merges old ones, until
//! it is wanted again.

use super::checkpoint::{After, CheckpointError, Checkpointer};
use super::control::CheckpointDone;
use super::tracer::Tracer;
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What comes from it.
pub enum News {
    Made(Result<CheckpointDone, CheckpointError>),
    /// It is through with the one before.
    Idle(Box<Checkpointer>),
    /// It has come to an end, and what it had of the program is lost.
    Dead,
}

/// Held by the supervisor.
pub struct Maker {
    tracer: Tracer,
    /// None until there has been something to do.
    thread: Option<Thread>,
    wishes: Arc<Wishes>,
}

/// Why it should come to an end of merging.
#[derive(Default)]
struct Wishes {
    /// It is to make a checkpoint.
    is_wanted: AtomicBool,
    /// There is nothing left to make one of.
    is_over: AtomicBool,
}

/// So often in a row merging waits for whoever wants a checkpoint; then they wait for it, lest the directory grows without bound.
const GIVEN_UP: u32 = 3;

impl Wishes {
    /// Whether merging goes on that was given up so often in a row.
    fn let_it_merge(&self, given_up: u32) -> bool {
        let gives_way = given_up < GIVEN_UP && self.is_wanted.load(Ordering::Relaxed);
        !gives_way && !self.is_over.load(Ordering::Relaxed)
    }
}

struct Thread {
    orders: mpsc::Sender<(Box<Checkpointer>, After)>,
    news: mpsc::Receiver<News>,
}

/// The supervisor looks at the news, also at the last.
struct Wake(Tracer);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.post(|| ());
    }
}

impl Maker {
    pub fn new(tracer: Tracer) -> Self {
        Self { tracer, thread: None, wishes: Arc::default() }
    }

    /// Has it make a checkpoint.
    ///
    /// # Errors
    /// There can be no thread, or it is dead: the checkpointer comes back.
    pub fn make(
        &mut self,
        checkpointer: Box<Checkpointer>,
        after: After,
    ) -> Result<(), (Box<Checkpointer>, io::Error)> {
        let started = match self.thread.take() {
            None => start(self.tracer.clone(), self.wishes.clone()),
            Some(known) => Ok(known),
        };
        let thread = match started {
            Ok(thread) => self.thread.insert(thread),
            Err(error) => return Err((checkpointer, error)),
        };
        self.wishes.is_wanted.store(false, Ordering::Relaxed);
        let sent = thread.orders.send((checkpointer, after));
        sent.map_err(|order| (order.0.0, io::Error::other("the thread that makes checkpoints has failed")))
    }

    /// Somebody waits for the next checkpoint.
    pub fn hurry(&self) {
        self.wishes.is_wanted.store(true, Ordering::Relaxed);
    }

    /// There is to be no other one.
    pub fn last(&self) {
        self.wishes.is_over.store(true, Ordering::Relaxed);
    }

    /// The next news, waited for at most so long.
    pub fn news(&self, wait: Duration) -> Option<News> {
        match self.thread.as_ref()?.news.recv_timeout(wait) {
            Ok(news) => Some(news),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(News::Dead),
        }
    }
}

fn start(tracer: Tracer, wishes: Arc<Wishes>) -> io::Result<Thread> {
    let (orders, todo) = mpsc::channel::<(Box<Checkpointer>, After)>();
    let (tell, news) = mpsc::channel();
    std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
        let _last = Wake(tracer.clone());
        // Before the supervisor is woken: it finds that nobody has any more to tell.
        let tell = tell;
        let mut given_up = 0;
        while let Ok((mut checkpointer, after)) = todo.recv() {
            let result = checkpointer.run(&tracer, after);
            let is_over = result.as_ref().map_or(true, |done| done.killed);
            let made = tell.send(News::Made(result));
            tracer.post(|| ());
            if !is_over {
                let goes_on = Cell::new(true);
                checkpointer.tidy(&|| {
                    goes_on.set(wishes.let_it_merge(given_up));
                    goes_on.get()
                });
                given_up = if goes_on.get() { 0 } else { given_up + 1 };
            }
            if made.and_then(|()| tell.send(News::Idle(checkpointer))).is_err() {
                return;
            }
            tracer.post(|| ());
        }
    })?;
    Ok(Thread { orders, news })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_gives_way_a_few_times_and_ends_with_the_program() {
        let wishes = Wishes::default();
        assert!(wishes.let_it_merge(0));
        wishes.is_wanted.store(true, Ordering::Relaxed);
        assert_eq!([0, GIVEN_UP - 1, GIVEN_UP].map(|times| wishes.let_it_merge(times)), [false, false, true]);
        wishes.is_over.store(true, Ordering::Relaxed);
        assert!(!wishes.let_it_merge(GIVEN_UP));
    }
}

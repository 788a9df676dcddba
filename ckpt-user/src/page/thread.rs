//! The pager's thread.

use super::space::{LazySpace, Progress};
use super::{GUARDIAN, PagerError, Plan, Shared, State, WAKE};
use crate::sys::guardian;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Between looks at a file that holds the fill, and at a fault for which the kernel is not ready, in ms.
const HOLD_PAUSE: u16 = 10;
const STALL_PAUSE: u16 = 1;

pub(super) struct Thread {
    shared: Arc<Shared>,
    plan: Plan,
    namespace: u64,
    full: bool,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// More to fill.
    AtOnce,
    /// In so many milliseconds.
    Pause(u16),
    /// When something happens.
    Wait,
}

impl Thread {
    pub(super) fn new(shared: Arc<Shared>, plan: Plan, namespace: u64) -> Self {
        Self { shared, plan, namespace, full: false }
    }

    /// Serves until it is told to stop. All userfaultfds belong to `shared`, which outlives this.
    pub(super) fn run(mut self) {
        let served = std::panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        let (error, from) = match served {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let from = if matches!(error, PagerError::Unguarded) {
                    ""
                } else {
                    " without --lazy, which takes the checkpoint before if need be, or from another one (--at ID)"
                };
                (anyhow::Error::from(error), from)
            }
            // The guardian does the rest: no descriptor is closed before it is done.
            Err(_) => std::process::abort(),
        };
        // Said first: once the program is gone the supervisor ends, and this thread with it.
        log::error!(
            "{error:#}; the program is killed rather than run on without its memory: restart it{from}"
        );
        self.shared.failed.store(true, Ordering::SeqCst);
        let _ = self.shared.done.write(1);
        guardian::end_all(self.namespace);
    }

    fn serve(&mut self) -> Result<(), PagerError> {
        let mut next = Next::AtOnce;
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = match next {
                Next::AtOnce => EpollTimeout::ZERO,
                Next::Pause(ms) => EpollTimeout::from(ms),
                Next::Wait => EpollTimeout::NONE,
            };
            let ready = match self.shared.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(PagerError::kernel("tell about")(error.into())),
            };
            if self.shared.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            while self.shared.waiting.load(Ordering::SeqCst) > 0 {
                std::thread::yield_now();
            }
            next = self.round(&events[..ready])?;
        }
    }

    /// Serves what is ready and fills a little.
    fn round(&mut self, ready: &[EpollEvent]) -> Result<Next, PagerError> {
        let shared = self.shared.clone();
        let mut guard = shared.lock();
        let state = &mut *guard;
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        for key in ready.iter().map(EpollEvent::data) {
            match key {
                WAKE => drop(shared.wake.read()),
                // Should ckptbpf die too, nobody would end the program.
                GUARDIAN => return Err(PagerError::Unguarded),
                _ => state.serve(&shared.epoll, key)?,
            }
        }
        // Looked at until it is so: the thread that goes on does not tell.
        let unsettled =
            state.spaces.values_mut().map(LazySpace::settle).filter(|is_settled| !is_settled).count();
        let stalled: Vec<u64> =
            state.spaces.iter().filter(|(_, s)| s.is_stalled()).map(|(&key, _)| key).collect();
        for &key in &stalled {
            state.serve(&shared.epoll, key)?;
        }
        let next = match self.fill(state)? {
            Progress::Made => Next::AtOnce,
            // The event that keeps us from filling wakes us; the end of its handling does not.
            Progress::Busy => Next::Pause(STALL_PAUSE),
            _ if !stalled.is_empty() || (unsettled > 0 && state.lacks_some()) => Next::Pause(STALL_PAUSE),
            _ if self.is_held() && state.lacks_some() => Next::Pause(HOLD_PAUSE),
            _ => Next::Wait,
        };
        shared.publish(state);
        if !self.full && !state.lacks_some() {
            self.full = true;
            // Its end is no news from here on.
            let _ = shared.epoll.delete(self.plan.guardian.ended());
            self.plan.guardian.dismiss().map_err(PagerError::kernel("end the guard of"))?;
            let _ = shared.done.write(1);
        }
        Ok(next)
    }

    fn is_held(&self) -> bool {
        self.plan.hold.as_ref().is_some_and(|file| file.exists())
    }

    /// Neighbours of what has faulted, then the background: rebuilt processes before the children they forked,
    /// which may yet execute something else.
    fn fill(&self, state: &mut State) -> Result<Progress, PagerError> {
        let epoll = &self.shared.epoll;
        let keys: Vec<u64> = state.spaces.keys().copied().collect();
        let mut busy = false;
        for &key in &keys {
            match state.step(epoll, key, LazySpace::fill_near)? {
                Progress::Made => return Ok(Progress::Made),
                Progress::Busy => busy = true,
                Progress::Nothing | Progress::Dead => {}
            }
        }
        if !self.is_held() {
            for &key in &keys {
                match state.step(epoll, key, LazySpace::fill_next)? {
                    Progress::Made => return Ok(Progress::Made),
                    Progress::Busy => busy = true,
                    Progress::Nothing | Progress::Dead => {}
                }
            }
        }
        Ok(if busy { Progress::Busy } else { Progress::Nothing })
    }
}

impl State {
    fn lacks_some(&self) -> bool {
        self.spaces.values().any(|s| s.missing() > 0)
    }
}

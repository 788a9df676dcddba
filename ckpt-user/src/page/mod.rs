//! The lazy pager: the program runs while its memory is still arriving.
//!
//! ```text
//!  start ─▶ serving, filling ──last page──▶ full ──hand over──▶ ended
//!               │                            └─ guardian dismissed, `done` readable
//!               └─ a page cannot be had ─▶ program killed, `done` readable
//! ```
//! It promises: no byte that is not the image's or the program's own. A page that cannot be had kills the
//! program, and so does ckptbpf's own death while pages are pending, or its guardian's (see [`crate::sys::guardian`]).
//!
//! One lock holds all spaces, and whoever holds it reads events *and* fills: so no event is known to one
//! thread while another still fills by the old map. The pager's thread takes it for one round (messages, a
//! few pages) at a time. The tracer takes it in a freeze: since every thread that was in an event has been let
//! go by its reading, a stopped tree and the map agree. The tracer never holds it while it touches memory of
//! the program, and the pager's thread goes on meanwhile: a fault in a freeze is served.
//!
//! Order: the page that faulted, alone; its neighbours in the image (they cost a copy); then all others, the
//! newest generation first. Only memory that the chain holds content for is pending; anything else that faults
//! is a zero page.
//!
//! **Two threads of the program, one fork.** The child gets the map as it is when its event is read. A thread
//! beside the fork that drops memory (MADV_DONTNEED) in the microseconds between the copying of the page tables
//! and that reading drops it for the child too: as if the call had come just before the fork, with which it ran
//! concurrently.
//!
//! **A forked child** is served like its parent, with first touches of empty memory too, until a freeze finds all its pages
//! there, unless there are very many. That lets go of it mapping by mapping: closing its userfaultfd ends nothing while
//! somebody else has it too, if only to list /proc/PID/fd.
//!
//! **After the last page** the userfaultfd still serves first touches of empty memory, and events still stop
//! their threads. So the supervisor hands over at once, in a short freeze of its own, rather than at the next
//! checkpoint: without `-i` that may never come, and until then ckptbpf would be in the way of every fork. In
//! it: read what is dirty, unregister, register with a second userfaultfd (write protection only, no events),
//! protect again. Should ckptbpf be killed at any point of this, the kernel unregisters: nothing is pending.

mod late;
pub mod pending;
pub mod source;
pub mod space;
mod thread;
mod wiped;

use crate::memory::runs::PageSet;
use crate::memory::vma::Vma;
use crate::sys::guardian::Guardian;
use crate::sys::uffd::Uffd;
use crate::track::space::may_be_watched;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use source::{PageSource, SourceError};
use space::{Buffer, LazySpace, Progress};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why pages stopped arriving. The program has been killed.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the guardian of this lazy restart was killed while pages were missing")]
    Unguarded,
    #[error("the kernel refuses to {doing} its memory")]
    Kernel { doing: &'static str, source: io::Error },
}

/// What the pager cannot do it says itself, and kills the program.
#[derive(Debug, thiserror::Error)]
#[error("the program is killed, as a page of its lazy restart cannot be had")]
pub struct Lost;

impl PagerError {
    fn kernel(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Kernel { doing, source }
    }
}

/// How a lazy restart goes.
#[derive(Debug)]
pub struct Plan {
    pub guardian: Guardian,
    /// Test hook: no background fill while this file exists.
    pub hold: Option<PathBuf>,
    /// Checkpoints may leave what has not arrived to the generations before: they go to the same directory.
    pub inherits: bool,
}

/// What a checkpoint has to know of an address space that is still arriving.
#[derive(Debug, Default)]
pub struct Arriving {
    /// Absent only for now: the chain stands for them.
    pub unfilled: PageSet,
    /// Clean by their marks, but at another place than in the chain.
    pub moved: PageSet,
}

/// What a freeze has to know of a lazy restart.
#[derive(Debug, Default)]
pub struct Arrivals {
    pub of: HashMap<Pid, Arriving>,
    /// What watched children that were forked while pages were missing; theirs are there.
    children: Vec<Uffd>,
}

impl Arrivals {
    /// In a freeze: ends the watch over children, whose mappings are among those of one process or another. Closing alone
    /// would not end it while somebody else has the descriptor, if only to list /proc/PID/fd. What is not a child's own is
    /// left as it was: memory of another process at that address, and what another userfaultfd watches.
    pub fn let_go_of_children<'v>(&mut self, processes: impl Iterator<Item = (Pid, &'v [Vma])>) {
        let children = std::mem::take(&mut self.children);
        if children.is_empty() {
            return;
        }
        // Those that are watched, where flags are known.
        let is_watched = |vma: &&Vma| may_be_watched(vma) && (vma.flags.is_empty() || vma.has("uw"));
        let forked = processes.filter(|(pid, _)| !self.of.contains_key(pid));
        let theirs = forked.flat_map(|(_, mappings)| mappings.iter().filter(is_watched));
        let ranges: BTreeSet<(u64, u64)> = theirs.map(|vma| (vma.start, vma.end - vma.start)).collect();
        for uffd in children {
            for &(start, length) in &ranges {
                uffd.let_go(start, length);
            }
        }
    }
}

/// The pager of one restart.
pub struct Pager {
    shared: Arc<Shared>,
    /// Pages that were pending at the start.
    pub total: u64,
}

/// State of pager and tracer.
struct Shared {
    state: Mutex<State>,
    /// Threads that want the lock: the pager's lets them have it.
    waiting: AtomicUsize,
    missing: AtomicU64,
    stop: AtomicBool,
    /// Wakes the pager's thread.
    wake: EventFd,
    /// Readable once nothing is missing, or all is lost.
    done: EventFd,
    failed: AtomicBool,
    epoll: Epoll,
}

struct State {
    spaces: BTreeMap<u64, LazySpace>,
    next: u64,
    source: Box<dyn PageSource>,
    inherits: bool,
    buffer: Buffer,
    messages: crate::sys::uffd::Messages,
    /// Met by a checkpoint.
    error: Option<PagerError>,
}

/// Copies between two looks at messages while a checkpoint waits.
const SETTLE_BATCHES: usize = 8;

/// Children that are complete are let go of at once while there are more spaces than this: each has a descriptor.
const MANY: usize = 256;

/// The wake descriptor and the guardian in the epoll set; spaces have other keys.
const WAKE: u64 = u64::MAX;
const GUARDIAN: u64 = u64::MAX - 1;

impl Pager {
    /// Begins to serve. `namespace`: the time namespace that is the program's alone.
    pub fn start(
        spaces: Vec<LazySpace>,
        source: Box<dyn PageSource>,
        plan: Plan,
        namespace: u64,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(plan.guardian.ended(), EpollEvent::new(EpollFlags::EPOLLIN, GUARDIAN))?;
        let total = spaces.iter().map(|s| s.pending.len()).sum();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                spaces: BTreeMap::new(),
                next: 0,
                source,
                inherits: plan.inherits,
                buffer: Buffer::default(),
                messages: crate::sys::uffd::Messages::default(),
                error: None,
            }),
            waiting: AtomicUsize::new(0),
            missing: AtomicU64::new(total),
            stop: AtomicBool::new(false),
            wake,
            done,
            failed: AtomicBool::new(false),
            epoll,
        });
        for space in spaces {
            shared.lock().add(&shared.epoll, space)?;
        }
        plan.guardian.watch(namespace);
        let thread = thread::Thread::new(shared.clone(), plan, namespace);
        std::thread::Builder::new().name("pager".into()).spawn(move || thread.run())?;
        Ok(Self { shared, total })
    }

    /// Pages that are still missing.
    pub fn missing(&self) -> u64 {
        self.shared.missing.load(Ordering::SeqCst)
    }

    /// Readable once the last page is there or the program had to be killed.
    pub fn done(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    /// Whether the last page is there.
    pub fn is_full(&self) -> bool {
        self.missing() == 0 && !self.has_failed()
    }

    /// Whether the program had to be killed.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::SeqCst)
    }

    /// Beside the running program: brings in what a checkpoint's freeze would have to wait for.
    ///
    /// # Errors
    /// As [`Pager::arriving`].
    pub fn prepare(&self) -> Result<(), Lost> {
        while self.settle_some(&mut self.shared.lock_soon())? != Progress::Nothing {}
        Ok(())
    }

    /// An error is the pager's thread's, which does not meet it again by itself. So is a fault that has to wait for the kernel.
    fn settle_some(&self, state: &mut State) -> Result<Progress, Lost> {
        let settled = state.settle_some(&self.shared.epoll);
        self.shared.publish(state);
        if settled.is_err() || state.spaces.values().any(LazySpace::is_stalled) {
            // Fails only when it is to wake up already.
            let _ = self.shared.wake.write(1);
        }
        settled.map_err(|error| {
            state.error = Some(error);
            Lost
        })
    }

    /// The generations before stand for nothing any more: from now on `prepare` brings in everything.
    pub fn inherit_nothing(&self) {
        self.shared.lock_soon().inherits = false;
    }

    /// In a freeze: brings in what the chain cannot stand for (moved pages, forked children), and says of each
    /// rebuilt process what is still on its way. What was moved is told once. Children are to be let go of.
    ///
    /// # Errors
    /// A page that cannot be had.
    pub fn arriving(&self) -> Result<Arrivals, Lost> {
        let mut state = self.shared.lock_soon();
        while self.settle_some(&mut state)? != Progress::Nothing {}
        let of = |space: &mut LazySpace| {
            let moved = std::mem::take(&mut space.moved);
            space.pid.map(|pid| (pid, Arriving { unfilled: space.unfilled(), moved }))
        };
        let children = state.take_children(&self.shared.epoll);
        Ok(Arrivals { of: state.spaces.values_mut().filter_map(of).collect(), children })
    }

    /// Ends the thread and lets go of its userfaultfds.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Fails only when it is to wake up already.
        let _ = self.shared.wake.write(1);
        self.shared.lock_soon().spaces.clear();
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("missing", &self.missing()).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For others than the pager's thread, which would take the lock again before anyone has woken up.
    fn lock_soon(&self) -> MutexGuard<'_, State> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let state = self.lock();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        state
    }

    fn publish(&self, state: &State) {
        let missing = state.spaces.values().map(LazySpace::missing).sum();
        self.missing.store(missing, Ordering::SeqCst);
    }
}

impl State {
    fn add(&mut self, epoll: &Epoll, space: LazySpace) -> io::Result<()> {
        let key = self.next;
        self.next += 1;
        let space = self.spaces.entry(key).or_insert(space);
        Ok(epoll.add(&space.uffd, EpollEvent::new(EpollFlags::EPOLLIN, key))?)
    }

    fn remove(&mut self, epoll: &Epoll, key: u64) -> Option<LazySpace> {
        let space = self.spaces.remove(&key)?;
        // The tracker's duplicate may stay open: closing ours would not take it off the list.
        let _ = epoll.delete(&space.uffd);
        Some(space)
    }

    /// Serves forked children, which are complete, no more.
    fn take_children(&mut self, epoll: &Epoll) -> Vec<Uffd> {
        let is_child = |(&key, space): (&u64, &LazySpace)| space.pid.is_none().then_some(key);
        let children: Vec<u64> = self.spaces.iter().filter_map(is_child).collect();
        children.into_iter().filter_map(|key| Some(self.remove(epoll, key)?.uffd)).collect()
    }

    /// Reads, applies and serves for one space; takes in its new children.
    fn serve(&mut self, epoll: &Epoll, key: u64) -> Result<(), PagerError> {
        if self.spaces.len() > MANY {
            self.drop_complete(epoll);
        }
        let Some(space) = self.spaces.get_mut(&key) else { return Ok(()) };
        let served = space.serve(self.source.as_mut(), &mut self.messages, &mut self.buffer);
        let children = std::mem::take(&mut space.children);
        if !children.is_empty() {
            // Shells fork and execute: what such a child would have inherited is wanted no more.
            self.drop_dead(epoll);
        }
        // All of them, whatever fails: nobody may run without being watched.
        let added: Vec<io::Result<()>> = children.into_iter().map(|child| self.add(epoll, child)).collect();
        served?;
        added.into_iter().collect::<io::Result<()>>().map_err(PagerError::kernel("watch"))
    }

    /// Lets go of children that are complete: each costs a descriptor.
    fn drop_complete(&mut self, epoll: &Epoll) {
        let is_complete =
            |(&key, s): (&u64, &LazySpace)| (s.pid.is_none() && s.missing() == 0).then_some(key);
        let complete: Vec<u64> = self.spaces.iter().filter_map(is_complete).collect();
        complete.into_iter().for_each(|key| drop(self.remove(epoll, key)));
    }

    fn serve_all(&mut self, epoll: &Epoll) -> Result<(), PagerError> {
        let keys: Vec<u64> = self.spaces.keys().copied().collect();
        keys.into_iter().try_for_each(|key| self.serve(epoll, key))
    }

    fn drop_dead(&mut self, epoll: &Epoll) {
        let dead: Vec<u64> =
            self.spaces.iter().filter(|(_, s)| s.uffd.is_dead()).map(|(&key, _)| key).collect();
        dead.into_iter().for_each(|key| drop(self.remove(epoll, key)));
    }

    /// One step of one space; one that has ended goes. A child that is complete is served until a freeze lets go of it.
    fn step(
        &mut self,
        epoll: &Epoll,
        key: u64,
        fill: impl FnOnce(&mut LazySpace, &mut dyn PageSource, &mut Buffer) -> Result<Progress, PagerError>,
    ) -> Result<Progress, PagerError> {
        let Some(space) = self.spaces.get_mut(&key) else { return Ok(Progress::Nothing) };
        let progress = fill(space, self.source.as_mut(), &mut self.buffer)?;
        if progress == Progress::Dead {
            self.remove(epoll, key);
        }
        Ok(progress)
    }

    /// Serves everyone, and fills a little of what no older generation can stand for: pages that have moved,
    /// forked children, and all there is where the generations before are in another directory.
    fn settle_some(&mut self, epoll: &Epoll) -> Result<Progress, PagerError> {
        self.drop_dead(epoll);
        self.serve_all(epoll)?;
        let inherits = self.inherits;
        let mut busy = false;
        let keys: Vec<u64> = self.spaces.keys().copied().collect();
        for key in keys {
            for _ in 0..SETTLE_BATCHES {
                let progress = self.step(epoll, key, |space, source, buffer| match space.pid {
                    Some(_) if inherits => space.fill_moved(source, buffer),
                    _ => space.fill_next(source, buffer),
                })?;
                match progress {
                    Progress::Made => busy = true,
                    Progress::Busy => return Ok(Progress::Busy),
                    Progress::Nothing | Progress::Dead => break,
                }
            }
        }
        Ok(if busy { Progress::Made } else { Progress::Nothing })
    }
}

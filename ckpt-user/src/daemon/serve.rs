//! The core: accepts, judges, answers.
//!
//! One thread accepts and waits for workers; each client has one of a pool's, which has one for each that there may be. For what a client
//! sends may have any descriptor with it, and to close that may take as long as the client likes (FUSE, SO_LINGER). What a client
//! leaves unread is closed by [`Closer`]. Workers' questions have a pool of their own.

use super::faults;
use super::ids::{self, Ids};
use super::limits::{Full, Limits, Usage};
use super::peer::{Peer, Who};
use super::spawn::{self, Worker};
use super::subgroups::Subgroups;
use super::teller::{self, Teller, Turn};
use super::wire::{
    BUILD, FAULTS, Hello, IDS, LIMIT, Message, NextId, Outcome, PROGRAMS, QUERY, ROWS, Refusal, WORKER,
    Welcome,
};
use crate::sys::closer::Closer;
use crate::sys::packet::{self, Packet};
use crate::sys::{pidfd, socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

/// How long a client may take to say what it wants, in milliseconds.
const HELLO: i32 = 5000;

/// How long it may have a device without asking for anything.
const IDLE: i32 = 60_000;

/// The same for process ids: between those of a program's processes and those of their threads its memory is filled.
const BETWEEN_IDS: i32 = 600_000;

/// How long a worker may go on whose front is gone.
const WITHOUT_FRONT: Duration = Duration::from_secs(10);

/// Between two tries to accept where there is no descriptor left for it, and between two looks at what is kept from being gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Before each try to take a group away, in milliseconds.
const PAUSES: [u64; 6] = [0, 10, 100, 1000, 5000, 20_000];

/// Whom a daemon serves.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// This user alone.
    pub uid: Option<u32>,
    /// Processes of this Slurm job alone.
    pub job: Option<u32>,
    /// Lends what lazy restarts take.
    pub faults: bool,
    pub limits: Limits,
}

struct Core {
    rules: Rules,
    usage: Mutex<Usage>,
    /// None where the kernel has no eBPF for it.
    teller: Option<Arc<Teller>>,
    tellers: Handle,
    turns: Mutex<HashMap<u32, Turn>>,
    ids: Ids,
    /// None where a user's workers may have all that the daemon has.
    subgroups: Option<Arc<Subgroups>>,
    closer: Closer,
}

impl Core {
    /// At once, whatever waits in it; where that cannot be, by somebody else.
    fn close(&self, client: OwnedFd) {
        if let Err(client) = self.closer.close(client) {
            drop(spawn_blocking(move || drop(client)));
        }
    }

    /// A user's turn: of their workers' questions, and of the ids that they have. Those of users who have none any more are
    /// forgotten.
    fn turn(&self, uid: u32) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(uid).or_default().clone()
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves whoever connects, until this future is dropped. Workers' questions are answered by blocking threads of `tellers`.
///
/// # Errors
/// The listening socket cannot be waited for.
pub async fn serve(
    listener: OwnedFd,
    rules: Rules,
    (teller, tellers): (Option<Teller>, Handle),
    subgroups: Option<Arc<Subgroups>>,
) -> io::Result<()> {
    let closer = Closer::start()?;
    let core = Arc::new(Core {
        rules,
        usage: Mutex::new(Usage::new(rules.limits)),
        teller: teller.map(Arc::new),
        tellers,
        turns: Mutex::default(),
        ids: Ids::default(),
        subgroups,
        closer,
    });
    let listener = packet::watched(Arc::new(listener))?;
    loop {
        let mut ready = listener.readable().await?;
        match ready.try_io(|listener| socket::accept(listener.get_ref())) {
            Ok(Ok(client)) => begin(&core, client),
            Ok(Err(error)) => {
                // Of a client that is gone already, or there are no descriptors: those that are served go on.
                log::warn!("cannot accept: {error}");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(_would_block) => {}
        }
    }
}

fn begin(core: &Arc<Core>, client: OwnedFd) {
    match admitted(core, &client) {
        Some(Ok((seat, peer))) => drop(tokio::spawn(client_life(seat, peer, client))),
        Some(Err(refusal)) => {
            answer(&client, refusal.into());
            core.close(client);
        }
        None => core.close(client),
    }
}

/// Who it is, with a seat for them; none if they are gone already.
fn admitted(core: &Arc<Core>, client: &OwnedFd) -> Option<Result<(Seat, Peer), Refusal>> {
    let peer = Peer::of(client).ok()?;
    if core.rules.uid.is_some_and(|uid| uid != peer.uid && peer.uid != 0) {
        return Some(Err(Refusal::OtherUser));
    }
    // Before it is counted: there it may be as many users as it likes.
    if !peer.is_of_this_user_namespace() {
        return Some(Err(Refusal::Namespace));
    }
    Some(Seat::taken(core, peer.uid).map(|seat| (seat, peer)).map_err(|_full| Refusal::Connections))
}

/// What one user has of the daemon: given back when it is dropped.
struct Seat {
    core: Arc<Core>,
    uid: u32,
    is_worker: bool,
}

impl Seat {
    fn taken(core: &Arc<Core>, uid: u32) -> Result<Self, Full> {
        core.usage().connect(uid)?;
        Ok(Self { core: core.clone(), uid, is_worker: false })
    }

    fn promote(&mut self) -> Result<(), Refusal> {
        let mut usage = self.core.usage();
        usage.promote(self.uid).map_err(|_full| Refusal::Workers)?;
        self.is_worker = true;
        usage.begin(self.uid, Instant::now()).map_err(|_full| Refusal::Often)
    }

    fn welcome(&self) -> Welcome {
        let killed = self.core.subgroups.as_ref().map_or(0, |groups| groups.killed(self.uid));
        let usage = self.core.usage();
        let pid = std::process::id().cast_signed();
        let (workers, most) = (usage.workers(self.uid), usage.most_workers());
        Welcome { workers, most, pid, killed, build: BUILD }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut usage = self.core.usage();
        if self.is_worker { usage.ended(self.uid) } else { usage.disconnect(self.uid) }
    }
}

/// Whoever does not take an answer at once gets none.
fn answer(client: &OwnedFd, message: Message) {
    let _ = packet::send(client.as_fd(), &message.to_bytes(), &[], MsgFlags::MSG_DONTWAIT);
}

async fn client_life(seat: Seat, peer: Peer, client: OwnedFd) {
    let served = spawn_blocking(move || served(seat, peer, client)).await;
    let Ok(Some((seat, served))) = served else { return };
    let Worker { process, front, told: by, questions } = match served {
        Served::Worker(worker) => *worker,
        Served::Asks(client) => return asker_life(seat, client).await,
    };
    let mut questions = questions.map(Arc::new);
    let mut over = pin!(over(process, front));
    let ended = tokio::select! {
        ended = &mut over => ended,
        () = told(&seat, questions.clone()) => {
            // At once: who asks on is not to wait for an answer.
            let closed = questions.take();
            let _ = spawn_blocking(move || drop(closed)).await;
            over.await
        }
    };
    // What waits in it may take long to close: not here, and before the seat is free.
    let _ = spawn_blocking(move || drop(questions)).await;
    log::info!("uid {}: worker over: {ended:?}", seat.uid);
    shown_is_gone(seat.uid, by).await;
    let (core, uid) = (seat.core.clone(), seat.uid);
    drop(seat);
    leave_group(&core, uid).await;
}

/// Of a worker that another core has started, and that asks this one.
async fn asker_life(seat: Seat, client: OwnedFd) {
    let client = Arc::new(client);
    told(&seat, Some(client.clone())).await;
    if let Some(client) = Arc::into_inner(client) {
        seat.core.close(client);
    }
}

/// How a worker has ended. It ends with its front; one that does not, as its user has stopped it, is ended.
async fn over(mut process: Child, front: OwnedFd) -> io::Result<ExitStatus> {
    tokio::select! {
        ended = process.wait() => return ended,
        () = left_alone(front) => {}
    }
    let number = process.id().unwrap_or_default();
    match process.start_kill() {
        Ok(()) => log::warn!("worker {number} has not ended with its front, and is ended"),
        Err(error) => {
            log::error!("worker {number} has not ended with its front, and cannot be ended: {error}");
        }
    }
    process.wait().await
}

/// Until a process has been gone for as long as a worker may take to see that.
async fn left_alone(front: OwnedFd) {
    if let Ok(front) = packet::watched(Arc::new(front))
        && front.readable().await.is_ok()
    {
        tokio::time::sleep(WITHOUT_FRONT).await;
    } else {
        // It cannot be watched.
        std::future::pending::<()>().await;
    }
}

/// Until the process that a worker has shown to its front is gone, too. Whoever traces that has to wait for it, and may take their time;
/// it counts as the daemon's meanwhile, and as one of its user's jobs.
async fn shown_is_gone(uid: u32, by: OwnedFd) {
    let Some(shown) = spawn::shown(by.as_fd()) else { return };
    let is_there = || pidfd::names(shown.as_fd()).is_ok_and(|named| named.is_some());
    if is_there() {
        log::warn!("uid {uid}: somebody traces what a worker has shown, and is yet to wait for its end");
    }
    while is_there() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A user's group goes with the last worker. What that has forked may be there a moment longer; after that, the next worker of anybody's
/// is the time to try it again.
async fn leave_group(core: &Core, uid: u32) {
    let Some(subgroups) = &core.subgroups else { return };
    for pause in PAUSES {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let subgroups = subgroups.clone();
        let is_gone = spawn_blocking(move || subgroups.left(uid)).await.unwrap_or(true);
        if is_gone || core.usage().workers(uid) > 0 {
            return;
        }
    }
}

/// Answers the questions of a worker that has a connection for it.
async fn told(seat: &Seat, questions: Option<Arc<OwnedFd>>) {
    if let (Some(teller), Some(questions)) = (seat.core.teller.clone(), questions) {
        let (pool, turn) = (seat.core.tellers.clone(), seat.core.turn(seat.uid));
        let served = teller::serve(teller, pool, turn, seat.uid, questions).await;
        served.unwrap_or_else(|error| log::warn!("uid {}: a worker's questions: {error}", seat.uid));
    }
}

/// What goes on once a client is answered.
enum Served {
    Worker(Box<Worker>),
    /// Questions by its connection.
    Asks(OwnedFd),
}

/// Does what the client wants. Until its connection is closed it has its seat.
fn served(mut seat: Seat, peer: Peer, client: OwnedFd) -> Option<(Seat, Served)> {
    match answered(&mut seat, peer, &client) {
        Some(Started::Asks) => Some((seat, Served::Asks(client))),
        Some(Started::Worker(worker)) => {
            // Of its connection nothing stays here: that it ends is to be seen by the other end.
            seat.core.close(client);
            Some((seat, Served::Worker(worker)))
        }
        None => {
            seat.core.close(client);
            None
        }
    }
}

/// What a client gets that wants more than an answer.
enum Started {
    Worker(Box<Worker>),
    /// It may ask from here on.
    Asks,
}

fn answered(seat: &mut Seat, peer: Peer, client: &OwnedFd) -> Option<Started> {
    let first = match next(client, HELLO) {
        Ok(Some(packet)) => packet,
        Ok(None) => return None,
        // Too late, or not a message of ours.
        Err(_) => {
            answer(client, Refusal::Malformed.into());
            return None;
        }
    };
    let wanted = match wanted(&first) {
        Ok(QUERY) => {
            answer(client, Message::Welcome(seat.welcome()));
            return None;
        }
        wanted => wanted,
    };
    let sent = first.descriptors.into_iter().next();
    let judged = wanted.and_then(|wanted| Ok((wanted, peer.judged(sent, seat.core.rules.job)?)));
    let started = match judged {
        Ok((FAULTS, _)) => {
            lend(seat, client);
            return None;
        }
        Ok((IDS, _)) => {
            number(seat, client);
            return None;
        }
        Ok((PROGRAMS, _)) => begin_telling(seat, client).map(|()| Started::Asks),
        Ok((_, (who, process))) => start(seat, &who, process, client).map(Box::new).map(Started::Worker),
        Err(refusal) => Err(refusal),
    };
    started
        .inspect_err(|refusal| {
            log::debug!("uid {}: refused: {}", seat.uid, refusal.told());
            answer(client, (*refusal).into());
        })
        .ok()
}

/// The next message of a client, which has so many milliseconds.
fn next(client: &OwnedFd, patience: i32) -> io::Result<Option<Packet>> {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    packet::receive(client.as_fd(), LIMIT, MsgFlags::MSG_DONTWAIT)
}

/// Lends what it takes to serve page faults, for as long as the client asks for more.
fn lend(seat: &Seat, client: &OwnedFd) {
    if !seat.core.rules.faults {
        return answer(client, Refusal::NoFaults.into());
    }
    packet::take_descriptors(client, true);
    let (message, device) = faults::device();
    let with: Vec<_> = device.iter().map(AsFd::as_fd).collect();
    if packet::send(client.as_fd(), &message.to_bytes(), &with, MsgFlags::MSG_DONTWAIT).is_err() {
        return;
    }
    while let Ok(Some(packet)) = next(client, IDLE) {
        let request = Message::parse(&packet.bytes).ok();
        match request.and_then(|request| faults::answer(&request, packet.descriptors)) {
            Some(done) => answer(client, done),
            None => return answer(client, Refusal::Malformed.into()),
        }
    }
}

/// Has the kernel give the client the process ids that it asks for, one by one. What it sends meanwhile is left where it is: that
/// may take long to be closed, and others wait.
fn number(seat: &Seat, client: &OwnedFd) {
    let turn = seat.core.turn(seat.uid);
    answer(client, Message::Done(Outcome::of(Ok(()))));
    while let Ok(Some(packet)) = next(client, BETWEEN_IDS) {
        let Ok(Message::NextId(NextId { id, reserved: 0 })) = Message::parse(&packet.bytes) else {
            return answer(client, Refusal::Malformed.into());
        };
        drop(packet);
        if id == 0 {
            continue;
        }
        let _own = turn.blocking_lock();
        seat.core.ids.next(id, |moved| {
            answer(client, Message::Done(Outcome::of(moved.as_ref().map(|_| ()))));
            if moved.is_ok() {
                // Until it says something, or is gone.
                let _ = poll(&mut [PollFd::new(client.as_fd(), PollFlags::POLLIN)], ids::HELD);
            }
        });
    }
}

/// What the client wants: [`QUERY`], [`WORKER`], [`FAULTS`], [`PROGRAMS`] or [`IDS`].
fn wanted(first: &Packet) -> Result<u32, Refusal> {
    match Message::parse(&first.bytes)? {
        // Who only asks who is there is told of which build.
        Message::Hello(Hello { wants: QUERY, .. }) => Ok(QUERY),
        Message::Hello(Hello { wants: wants @ (WORKER | FAULTS | IDS), build: BUILD }) => Ok(wants),
        Message::Hello(Hello { wants: PROGRAMS, build: ROWS }) => Ok(PROGRAMS),
        Message::Hello(Hello { wants: WORKER | FAULTS | IDS | PROGRAMS, .. }) => Err(Refusal::Version),
        _ => Err(Refusal::Malformed),
    }
}

/// From here on questions come by this connection: of whoever has it, each with its sender's credentials ([`teller`]). Whoever asks is
/// told of what they trace, as a worker of this core is, and counts as one.
fn begin_telling(seat: &mut Seat, client: &OwnedFd) -> Result<(), Refusal> {
    if seat.core.teller.is_none() {
        return Err(Refusal::NoPrograms);
    }
    seat.promote()?;
    packet::tell_senders(client).map_err(|_| Refusal::Failed)?;
    packet::take_descriptors(client, true);
    log::info!("uid {}: a worker of another daemon asks", seat.uid);
    answer(client, Message::Done(Outcome { error: 0, reserved: 0 }));
    Ok(())
}

/// Starts a worker, if the client may have one more.
fn start(seat: &mut Seat, who: &Who, process: OwnedFd, client: &OwnedFd) -> Result<Worker, Refusal> {
    seat.promote()?;
    packet::take_descriptors(client, true);
    let has_programs = seat.core.teller.is_some();
    let subgroups = seat.core.subgroups.as_deref();
    let started = spawn::start(who, client.as_fd(), process, has_programs, subgroups);
    let worker = started.map_err(|error| {
        log::error!("uid {}: cannot start a worker: {error}", who.uid);
        Refusal::Failed
    })?;
    log::info!("uid {}: worker {} for process {}", who.uid, worker.process.id().unwrap_or_default(), who.pid);
    Ok(worker)
}

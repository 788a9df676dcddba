//! The core: accepts, judges, answers. One thread, and nothing in it waits for a client but a task of that client's own.

use super::faults;
use super::limits::{Full, Limits, Usage};
use super::peer::Peer;
use super::spawn;
use super::wire::{FAULTS, Hello, LIMIT, Message, QUERY, Refusal, WORKER, Welcome};
use crate::sys::packet::{self, Packet};
use crate::sys::socket;
use nix::sys::socket::MsgFlags;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// How long a client may take to say what it wants.
const HELLO: Duration = Duration::from_secs(5);

/// How long a client may have a device without asking for anything.
const IDLE: Duration = Duration::from_secs(60);

/// Between two tries to accept where there is no descriptor left for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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
    usage: RefCell<Usage>,
}

/// Serves whoever connects, until this future is dropped.
///
/// # Errors
/// The listening socket cannot be waited for.
pub async fn serve(listener: OwnedFd, rules: Rules) -> io::Result<()> {
    let core = Rc::new(Core { rules, usage: RefCell::new(Usage::new(rules.limits)) });
    let listener = packet::watched(listener)?;
    let clients = LocalSet::new();
    let accept = async {
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
    };
    clients.run_until(accept).await
}

fn begin(core: &Rc<Core>, client: OwnedFd) {
    // Gone already, or no room even for a refusal.
    let Ok(peer) = Peer::of(&client) else { return };
    let refuse = |refusal: Refusal| answer(&client, refusal.into());
    match core.rules.uid {
        Some(uid) if uid != peer.uid && peer.uid != 0 => return refuse(Refusal::OtherUser),
        _ => {}
    }
    let Ok(seat) = Seat::taken(core, peer.uid) else { return refuse(Refusal::Connections) };
    tokio::task::spawn_local(client_life(seat, peer, client));
}

/// What one user has of the daemon: given back when it is dropped.
struct Seat {
    core: Rc<Core>,
    uid: u32,
    is_worker: bool,
}

impl Seat {
    fn taken(core: &Rc<Core>, uid: u32) -> Result<Self, Full> {
        core.usage.borrow_mut().connect(uid)?;
        Ok(Self { core: core.clone(), uid, is_worker: false })
    }

    fn promote(&mut self) -> Result<(), Full> {
        self.core.usage.borrow_mut().promote(self.uid)?;
        self.is_worker = true;
        Ok(())
    }
}

impl Seat {
    fn welcome(&self) -> Welcome {
        let usage = self.core.usage.borrow();
        let pid = std::process::id().cast_signed();
        Welcome { workers: usage.workers(self.uid), most: usage.most_workers(), pid, reserved: 0 }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut usage = self.core.usage.borrow_mut();
        if self.is_worker { usage.ended(self.uid) } else { usage.disconnect(self.uid) }
    }
}

/// Whoever does not take an answer at once gets none.
fn answer(client: &OwnedFd, message: Message) {
    let _ = packet::send(client.as_fd(), &message.to_bytes(), &[], MsgFlags::MSG_DONTWAIT);
}

async fn client_life(mut seat: Seat, peer: Peer, client: OwnedFd) {
    let Ok(client) = packet::watched(client) else { return };
    let first = match timeout(HELLO, next(&client)).await {
        Ok(Ok(Some(packet))) => packet,
        Ok(Ok(None)) => return,
        // Too late, or not a message of ours.
        Ok(Err(_)) | Err(_) => return answer(client.get_ref(), Refusal::Malformed.into()),
    };
    let client = client.into_inner();
    match wanted(&first) {
        Ok(WORKER) => match start(&mut seat, peer, &client, first) {
            Ok(mut worker) => {
                // It is the worker's now: that it ends is to be seen by the other end.
                drop(client);
                let ended = worker.wait().await;
                log::info!("uid {}: worker over: {ended:?}", seat.uid);
            }
            Err(refusal) => {
                log::info!("uid {}: refused: {}", seat.uid, refusal.told());
                answer(&client, refusal.into());
            }
        },
        Ok(FAULTS) => fault_life(&seat, client).await,
        Ok(_) => answer(&client, Message::Welcome(seat.welcome())),
        Err(refusal) => answer(&client, refusal.into()),
    }
}

/// The next message of a client.
async fn next(client: &AsyncFd<OwnedFd>) -> io::Result<Option<Packet>> {
    loop {
        let mut ready = client.readable().await?;
        let read = |fd: &AsyncFd<OwnedFd>| packet::receive(fd.as_fd(), LIMIT, MsgFlags::MSG_DONTWAIT);
        if let Ok(packet) = ready.try_io(read) {
            return packet;
        }
    }
}

/// Lends what it takes to serve page faults, for as long as the client asks for more.
async fn fault_life(seat: &Seat, client: OwnedFd) {
    if !seat.core.rules.faults {
        return answer(&client, Refusal::NoFaults.into());
    }
    let (message, device) = faults::device();
    let with: Vec<_> = device.iter().map(AsFd::as_fd).collect();
    if packet::send(client.as_fd(), &message.to_bytes(), &with, MsgFlags::MSG_DONTWAIT).is_err() {
        return;
    }
    let Ok(client) = packet::watched(client) else { return };
    while let Ok(Ok(Some(packet))) = timeout(IDLE, next(&client)).await {
        let request = Message::parse(&packet.bytes).ok();
        match request.and_then(|request| faults::answer(&request, packet.descriptors)) {
            Some(done) => answer(client.get_ref(), done),
            None => return answer(client.get_ref(), Refusal::Malformed.into()),
        }
    }
}

/// What the client wants: [`QUERY`], [`WORKER`] or [`FAULTS`].
fn wanted(first: &Packet) -> Result<u32, Refusal> {
    match Message::parse(&first.bytes)? {
        Message::Hello(Hello { wants: wants @ (QUERY | WORKER | FAULTS), reserved: 0 }) => Ok(wants),
        _ => Err(Refusal::Malformed),
    }
}

/// Starts a worker, if the client may have one.
fn start(seat: &mut Seat, peer: Peer, client: &OwnedFd, first: Packet) -> Result<Child, Refusal> {
    let sent = first.descriptors.into_iter().next();
    let (who, process) = peer.judged(sent, seat.core.rules.job)?;
    seat.promote().map_err(|_full| Refusal::Workers)?;
    let worker = spawn::start(&who, client.as_fd(), process.as_fd()).map_err(|error| {
        log::error!("uid {}: cannot start a worker: {error}", who.uid);
        Refusal::Failed
    })?;
    log::info!("uid {}: worker {} for process {}", who.uid, worker.id().unwrap_or_default(), who.pid);
    Ok(worker)
}

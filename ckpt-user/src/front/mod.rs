//! ckptbpf as the parent of a program whose checkpoints are a worker's: small, as the job's limits count it.
//!
//! It does what takes the program's parent, and nothing else. Should its worker be gone, the program is not the worse for it.

mod admit;
mod again;
pub mod beside;
mod birth;
pub mod door;
mod init;
mod serve;

use crate::daemon::link::{Go, Heard, Heir, Link, Run, Secret, Share, TERMINAL, Word};
use crate::freeze::tree;
use crate::job::ended::{self, CannotRun, Ended};
use crate::job::options::LaunchOptions;
use crate::job::signals::Signals;
use crate::object::terminal;
use crate::sys::{challenge, clone, pidfd, spawn};
use crate::task::keyring::{self, Keyring};
use crate::task::limits;
use again::Again;
use anyhow::{Context, bail};
use door::{Door, NoDoor};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use serve::{Child, Front};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Has a worker do what this process was asked for. `program` is what it may ask to be run; what runs already is supervised from beside.
///
/// # Errors
/// [`NoDoor`] where the daemon gives no worker: nothing has been done then; or the program cannot be run.
pub fn go(door: &Door, program: Option<&LaunchOptions>, running: &mut dyn FnMut()) -> anyhow::Result<Ended> {
    let worker = door.worker()?;
    let mut wanted = begin(&worker, door)?;
    let mut shown = None;
    if let Word::Show(pid) = wanted {
        // A worker that is gone says so below.
        let _ = beside::show(pid, &worker);
        shown = Some(pid);
        wanted = beside::next(&worker, door)?;
    }
    match (&wanted, shown) {
        (Word::Done(status), _) => return Ok(Ended::Exited(*status as u8)),
        (Word::Running(_), Some(pid)) => return beside::serve(pid, &worker, door),
        _ => {}
    }
    let signals = Signals::listen_with_witness(None).context("cannot listen for signals")?;
    tree::note_strangers();
    clone::become_subreaper().context("cannot become the reaper of the program's orphans")?;
    let (child, kind, kept) = match wanted {
        Word::Run(Run { kept }) => {
            let program = program.context("the daemon's worker asks for a program that there is not")?;
            let started = start(program, &signals);
            let root = started.inspect_err(|_| drop(worker.say(&Word::Over(true), &[])))?;
            (Some(root), Child::Program, kept)
        }
        Word::Split(share) => match split(share, &worker)? {
            Split::Made(init, link) => (Some(init), Child::Init(link), 0),
            Split::Here => {
                // For the processes that are forked here: each begins with all that a program may have open.
                limits::raise_own();
                (None, Child::Restarted, 0)
            }
            Split::Refused(ended) => return Ok(ended),
        },
        _ => bail!("the daemon's worker says what is not to be understood"),
    };
    let front = Front::of(child, kind, signals, (Again::of(door.clone()), worker), running)?.keeping(kept);
    front.serve().context("cannot wait for the program")
}

/// What has become of a namespace for the program.
enum Split {
    /// Its init, and our link to that.
    Made(Pid, Link),
    /// There is none, and it can do without.
    Here,
    /// There is none, and the worker has ended with that.
    Refused(Ended),
}

/// A namespace for the program. That there is none is for the worker to say; what comes of it, for whoever has asked.
fn split(share: Share, worker: &Link) -> anyhow::Result<Split> {
    match init::fork(share) {
        Ok(init::Made { pid, front, worker: link }) => {
            let process = pidfd::open(pid)?;
            worker.say(&Word::Kept(true), &[process.as_fd(), link.as_fd()])?;
            Ok(Split::Made(pid, front))
        }
        Err(error) => {
            worker.say(&Word::made(Err(error)), &[])?;
            match worker.hear()? {
                Some(Heard { word: Word::Here(_), .. }) => Ok(Split::Here),
                Some(Heard { word: Word::Done(status), .. }) => {
                    Ok(Split::Refused(Ended::Exited(status as u8)))
                }
                _ => bail!("the daemon's worker was killed"),
            }
        }
    }
}

/// What a worker does whose front, or whose program's init, was killed: it ends as it would have been killed with it.
pub fn lost() -> ! {
    std::process::exit(ended::FAILED.into())
}

/// How long the daemon may take to start a worker.
const WORKER: u16 = 30_000;

/// Shows who this is, and hands on what is wanted; what the worker says to that.
fn begin(worker: &Link, door: &Door) -> Result<Word, NoDoor> {
    let hear = || match worker.hear() {
        Ok(Some(heard)) => Ok(heard.word),
        Ok(None) => Err(NoDoor::Silent(io::Error::other("its worker was killed"))),
        Err(error) => Err(NoDoor::of(error)),
    };
    let challenge = match worker.hear_within(WORKER) {
        Ok(Some(heard)) => heard.word,
        Ok(None) => return hear(),
        Err(error) => return Err(NoDoor::of(error)),
    };
    if let Word::Challenge(secret) = challenge {
        answer(worker, secret, door, None)?;
    }
    hear()
}

/// Shows that this process may read the secret, and hands on what is wanted.
fn answer(worker: &Link, secret: Secret, door: &Door, heir: Option<&Heir>) -> Result<(), NoDoor> {
    match worker.say(&Word::Answer(read(secret)), &[]).and_then(|()| hand_on(worker, door, heir)) {
        // Whoever does not listen has said why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(NoDoor::Silent),
    }
}

/// What this process was asked for, and where it is; what runs of it by now, if that is for another worker.
fn hand_on(worker: &Link, door: &Door, heir: Option<&Heir>) -> io::Result<()> {
    let asked = door.asked().written()?;
    // It may be one that can be gone through, and not read.
    let here = nix::fcntl::open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let streams: Vec<Option<OwnedFd>> = (0..3).map(|stream| pidfd::duplicate_standard(stream).ok()).collect();
    // The worker is in a session of its own, which has none.
    let terminal = terminal::open().ok();
    let open = streams.iter().enumerate().filter(|one| one.1.is_some()).map(|one| 1 << one.0);
    let bits = open.chain(terminal.iter().map(|_| TERMINAL)).sum();
    let streams = streams.iter().flatten().map(AsFd::as_fd).chain(terminal.iter().map(AsFd::as_fd));
    let with: Vec<BorrowedFd<'_>> = [asked.as_fd(), here.as_fd()].into_iter().chain(streams).collect();
    let place = door.path().as_os_str().as_bytes().to_vec();
    let Keyring { serial, name, .. } = keyring::Known::own().session;
    let heir = heir.cloned();
    worker.say(&Word::Go(Go { streams: bits, place, keyring: serial, keyring_name: name, heir }), &with)
}

/// Answers [`Word::Programs`]: by whoever listens there now.
fn tell_programs(worker: &Link, door: &Door) {
    let programs = door.programs().ok();
    let with: Vec<BorrowedFd<'_>> = programs.iter().map(AsFd::as_fd).collect();
    // That the worker is gone is seen by the next look.
    let _ = worker.say(&Word::Programs(programs.is_some()), &with);
}

/// The secret; nothing where it may not be read, which is an answer, too.
fn read(secret: Secret) -> Vec<u8> {
    let mut answer = [0; challenge::LENGTH];
    let remote = [RemoteIoVec { base: secret.address as usize, len: answer.len() }];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let got = process_vm_readv(Pid::from_raw(secret.pid), &mut parts, &remote);
    if got == Ok(answer.len()) { answer.to_vec() } else { Vec::new() }
}

fn start(options: &LaunchOptions, signals: &Signals) -> anyhow::Result<Pid> {
    let name = options.program.first().context("no program was given")?;
    spawn::spawn(&options.program, &options.baseline_environment(), signals.original, None)
        .map_err(|error| CannotRun::from_exec(&name.to_string_lossy(), false, error).into())
}

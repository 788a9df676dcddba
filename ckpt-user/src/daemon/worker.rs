//! The life of a worker: from root to the job's user, and from then on what `ckptbpf` does for a user who runs it, but for the
//! program, which is its front's child.

use super::asked::Asked;
use super::become_worker;
use super::lender;
use super::link::{Go, Heard, Heir, Link, Secret, TERMINAL, Word};
use super::spawn::{self, Assignment};
use super::told;
use super::wire::Refusal;
use crate::cli;
use crate::freeze::tree;
use crate::job::ended::FAILED;
use crate::job::process::ProcessId;
use crate::job::terminal::say;
use crate::job::way::Way;
use crate::job::{namespace, registry};
use crate::object::terminal;
use crate::sys::challenge::Challenge;
use crate::sys::{environment, pidfd};
use crate::task::keyring;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// How long a front may take to find the secret.
const ANSWER: u16 = 10_000;

/// `ckptbpf daemon --worker`, which the daemon starts. Returns what to exit with.
///
/// # Errors
/// It was not started by a daemon, or its front went away.
pub fn main() -> anyhow::Result<u8> {
    nix::sys::prctl::set_name(c"ckptbpf")?;
    let core = pidfd::duplicate_standard(0).context("this is for the daemon to start")?;
    let Assignment { who, front, process, programs } = Assignment::receive(core.as_fd())?;
    let judged = become_worker::become_worker(&who, process.as_fd());
    // The connection may be held by others; what counts is whoever has asked.
    let link = Arc::new(Link::with(front, process));
    let judged = match judged {
        Ok(()) => unconfined(&link, core.as_fd(), who.uid).context("its front went away")?,
        refused => refused,
    };
    drop(core);
    if let Err(refusal) = judged {
        link.refuse(refusal)?;
        return Ok(FAILED);
    }
    tree::note_front(who.pid);
    // One that is gone is not to be found.
    let _ = ProcessId::of(who.pid.as_raw()).map(registry::note_front);
    if let Some(programs) = programs {
        told::note_core(programs, &link);
    }
    let (asked, heir) = go(&link)?;
    environment::set(asked.variables);
    let way = match heir {
        Some(heir) => Way::Heir(link.clone(), heir),
        None => Way::Worker(link.clone()),
    };
    let status = cli::for_front(asked.words, &way);
    if namespace::is_worker_inside() {
        // The one outside says it: this one is gone before it could.
        std::process::exit(status.into());
    }
    // Nobody listens any more where the front has been killed.
    let _ = link.say(&Word::Done(status.into()), &[]);
    Ok(status)
}

/// Whether the front, or somebody who helps it, may trace what its user may, and is not refused. Then a worker is worth no more than
/// it is.
fn unconfined(link: &Link, core: BorrowedFd<'_>, uid: u32) -> anyhow::Result<Result<(), Refusal>> {
    let challenge = match Challenge::start(|shown| spawn::tell_shown(core, shown)) {
        Ok(challenge) => challenge,
        // Its user may have no more processes (RLIMIT_NPROC), say.
        Err(error) => {
            say(&format!("a worker for uid {uid}: cannot start the process that it shows: {error}"));
            return Ok(Err(Refusal::Failed));
        }
    };
    let (pid, address) = challenge.place();
    link.say(&Word::Challenge(Secret { pid: pid.as_raw(), address }), &[])?;
    match link.hear_within(ANSWER)? {
        Some(Heard { word: Word::Answer(answer), .. }) if challenge.is_met(&answer) => Ok(Ok(())),
        Some(Heard { word: Word::Answer(_), .. }) => Ok(Err(Refusal::Confined)),
        _ => bail!("no answer"),
    }
}

/// Takes what the front sends: from here on this process is where the front is, and speaks for it.
fn go(link: &Link) -> anyhow::Result<(Asked, Option<Heir>)> {
    let Some(Heard { word: Word::Go(go), descriptors }) = link.hear()? else {
        bail!("its front went away");
    };
    let Go { streams, place, keyring, keyring_name, heir } = go;
    lender::note_place(OsString::from_vec(place).into());
    keyring::note_session(keyring, keyring_name);
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().context("a descriptor is missing");
    let (asked, here) = (next()?, next()?);
    let asked = Asked::read(asked)?;
    nix::unistd::fchdir(here)?;
    let nothing = OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null")?);
    for stream in 0..3 {
        let sent = if streams & 1 << stream == 0 { None } else { Some(next()?) };
        pidfd::duplicate_to_standard(sent.as_ref().unwrap_or(&nothing), stream)?;
    }
    if streams & TERMINAL != 0 {
        terminal::note(next()?);
    }
    Ok((asked, heir))
}

//! A worker in the place of one that was killed: the program runs, and its front knows it.
//!
//! The directory is claimed anew, and the next checkpoint holds everything: what the other one knew of the program's memory has gone
//! with it. What the program is to others (its parent, its standard streams) is as it was.

use super::attach::{Found, find};
use super::ended::{Ended, FAILED};
use super::in_freeze::Tracked;
use super::lease::Claimed;
use super::namespace::{self, Worker};
use super::options::{JobOptions, kept_signals};
use super::parent::Parent;
use super::process::ProcessId;
use super::start::{self, Start};
use crate::daemon::admission;
use crate::daemon::link::{Heir, Link, Started, Word};
use crate::freeze::tree;
use crate::front;
use crate::machine::Baseline;
use crate::sys::pidfd;
use anyhow::{Context, anyhow, bail};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

/// Supervises the program of the front at the other end of `front`. Only while this process has one thread.
///
/// # Errors
/// The program, its directory or its namespaces are not to be had.
pub fn supervise(options: &JobOptions, front: &Arc<Link>, heir: &Heir) -> anyhow::Result<Ended> {
    let (root, keeper) = match whose(front)? {
        Place::Here(root, keeper) => (root, keeper),
        Place::Outside(Ended::Signaled(_)) => front::lost(),
        Place::Outside(ended) => return Ok(ended),
    };
    // That it has ended is for its parent to tell.
    let program = match ProcessId::of(root.as_raw()) {
        Ok(program) if program.runs() => program,
        _ => return Ok(Ended::Exited(FAILED)),
    };
    let dir = OsString::from_vec(heir.dir.clone());
    let options = JobOptions { dir: Some(dir.into()), ..options.clone() };
    let Found { root, identity, claimed: Claimed { lease, previous, .. }, path } =
        find(root.as_raw(), &options)?;
    let restarted = previous.map(|record| record.restarted).unwrap_or_default();
    lease.starting(program, restarted)?;
    let parent = Parent::elsewhere(front, keeper).context("cannot listen for signals")?;
    let kept = kept_signals(lease.record().options.ckpt_signal, options.term_ends);
    parent.is_to_have(root, kept)?;
    let tracked = Tracked {
        cpu_baseline: Baseline::of(&heir.cpu_baseline),
        cpu_time_before: Duration::from_nanos(heir.cpu_time_before),
        ..Tracked::default()
    };
    start::supervise(Start {
        options: &options,
        identity,
        lease,
        path,
        root,
        keeper: parent,
        parent: None,
        tracked,
        attached: None,
        ended: None,
        running: &mut || drop(front.say(&Word::Running(true), &[])),
    })
}

/// Where this process goes on.
enum Place {
    /// Beside the program: its first process, and the link to init, if it is in a namespace of its own.
    Here(Pid, Option<Arc<Link>>),
    /// Outside of that: how the one beside the program has ended.
    Outside(Ended),
}

/// Takes what the front says of the program.
fn whose(front: &Arc<Link>) -> anyhow::Result<Place> {
    match front.hear().context("the front is gone")?.map(|heard| (heard.word, heard.descriptors)) {
        Some((Word::Started(Started { keeper, strangers, root }), _)) => {
            let strangers: Vec<Pid> = strangers.into_iter().map(Pid::from_raw).collect();
            front::beside::is_child(root)?;
            tree::note_keeper(Pid::from_raw(keeper), &strangers);
            admission::note_front(front);
            Ok(Place::Here(Pid::from_raw(root), None))
        }
        Some((Word::Kept(_), descriptors)) => {
            let [init, keeper, program] = <[OwnedFd; 3]>::try_from(descriptors)
                .map_err(|_| anyhow!("the front has lost the namespace"))?;
            match namespace::enter_by(init, Some(Arc::new(Link::new(keeper))), None)? {
                Worker::Outside(ended) => Ok(Place::Outside(ended)),
                Worker::Inside(keeper) => {
                    tree::note_keeper(Pid::from_raw(1), &[]);
                    let root = pidfd::names(program.as_fd())?.context("the program is gone")?;
                    Ok(Place::Here(root, keeper))
                }
            }
        }
        _ => bail!("the front is gone"),
    }
}

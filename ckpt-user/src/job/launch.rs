//! `launch`: a new program, a new job.

use super::directory::{JobDir, resolve_here};
use super::ended::{CannotRun, Ended, FAILED, NOT_FOUND, sudo_hint};
use super::heir;
use super::identity::{Identity, under_sudo};
use super::in_freeze::Tracked;
use super::lease::{Claim, Claimed, Lease, Purpose};
use super::options::{LaunchOptions, kept_signals};
use super::parent::Parent;
use super::process::ProcessId;
use super::record::{JobRecord, RecordedOptions};
use super::signals::Signals;
use super::start::{self, Start};
use super::terminal;
use super::way::{Way, by_daemon};
use crate::daemon::admission;
use crate::daemon::link::{Heard, Link, Run, Started, Word};
use crate::freeze::{tree, yama};
use crate::front;
use crate::sys::clone;
use crate::sys::spawn::{self, Detached, RunAs};
use anyhow::{Context, bail};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::sync::Arc;

/// Runs a program and supervises it.
pub fn launch(options: &LaunchOptions, way: &Way) -> anyhow::Result<Ended> {
    yama::of_children().context("no checkpoint could be taken of the program")?;
    match way {
        // Its front has gone to the background.
        Way::Worker(link) => return for_front(options, link),
        Way::Heir(link, heir) => return heir::supervise(&options.job, link, heir),
        _ if !options.detach => return begin(options, way, &mut || ()),
        _ => {}
    }
    match spawn::detach().context("cannot go to the background")? {
        Detached::Parent(ended) => Ok(ended),
        Detached::Child(ready) => begin(options, way, &mut || ready.tell()),
    }
}

fn begin(options: &LaunchOptions, way: &Way, running: &mut dyn FnMut()) -> anyhow::Result<Ended> {
    if let Some(ended) = by_daemon(way, Some(options), running) {
        return ended;
    }
    let claimed = claim(options)?;
    let signals = Signals::listen_with_witness(None).context("cannot listen for signals")?;
    tree::note_strangers();
    clone::become_subreaper().context("cannot become the reaper of the program's orphans")?;
    let name = name_of(options);
    let root = run(options, &claimed.identity, &signals)
        .map_err(|e| CannotRun::from_exec(&name, under_sudo(), e))?;
    let dir = claimed.claimed.lease.dir().clone();
    let ended = supervise(options, claimed, root, Parent::Us(signals), running)?;
    // As ld.so(8) ends what lacks a library, and a shell what it does not find.
    if ended.exit_status() == NOT_FOUND && under_sudo() && dir.require_checkpoints().is_err() {
        terminal::say(&format!("{name} ended with {NOT_FOUND}{}", sudo_hint(true)));
    }
    Ok(ended)
}

/// As a worker: the program is run by the front.
fn for_front(options: &LaunchOptions, link: &Arc<Link>) -> anyhow::Result<Ended> {
    let claimed = claim(options)?;
    let ckpt_signal = claimed.claimed.lease.record().options.ckpt_signal;
    let kept = kept_signals(ckpt_signal, options.job.term_ends);
    link.say(&Word::Run(Run { kept }), &[]).context("the front is gone")?;
    let Started { keeper, strangers, root } = match link.hear().context("the front is gone")? {
        Some(Heard { word: Word::Started(started), .. }) => started,
        // It has said why it cannot be run.
        Some(Heard { word: Word::Over(_), .. }) => return Ok(Ended::Exited(FAILED)),
        _ => bail!("the front is gone"),
    };
    front::beside::is_child(root)?;
    let root = Pid::from_raw(root);
    let strangers: Vec<Pid> = strangers.into_iter().map(Pid::from_raw).collect();
    tree::note_keeper(Pid::from_raw(keeper), &strangers);
    admission::note_front(link);
    let parent = Parent::elsewhere(link, None).context("cannot listen for signals")?;
    let mut running = || drop(link.say(&Word::Running(true), &[]));
    supervise(options, claimed, root, parent, &mut running)
}

/// Whose program it is, and the directory that is claimed for it.
struct Ours {
    identity: Identity,
    claimed: Claimed,
    path: PathBuf,
}

fn name_of(options: &LaunchOptions) -> String {
    options.program.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn claim(options: &LaunchOptions) -> anyhow::Result<Ours> {
    let identity = Identity::of_caller(options.user.as_deref())?;
    let name = options.program.first().context("no program was given")?;
    let path = resolve_here(options.job.dir.as_deref(), name);
    let dir = Arc::new(JobDir::create(&path, &identity.fs_ids())?);
    let claim = Claim {
        purpose: Purpose::Launch { new: options.new },
        take_over: options.job.take_over,
        options: RecordedOptions::merged(&options.job, None),
        argv: JobRecord::readable(&options.program),
    };
    let claimed = Lease::claim(&dir, claim)?;
    claimed.notes.iter().for_each(|note| log::warn!("{note}"));
    Ok(Ours { identity, claimed, path })
}

/// Runs the program as our child.
fn run(options: &LaunchOptions, identity: &Identity, signals: &Signals) -> std::io::Result<Pid> {
    let run_as = identity.changed.then(|| RunAs {
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups.clone(),
    });
    let own = if identity.changed { identity.env.clone() } else { Vec::new() };
    let environment = [own, options.baseline_environment()].concat();
    spawn::spawn(&options.program, &environment, signals.original, run_as)
}

fn supervise(
    options: &LaunchOptions,
    ours: Ours,
    root: Pid,
    keeper: Parent,
    running: &mut dyn FnMut(),
) -> anyhow::Result<Ended> {
    let Ours { identity, claimed, path } = ours;
    // Should ckptbpf be killed right then, what runs is known.
    let program = ProcessId::of(root.as_raw()).map_err(anyhow::Error::from);
    let noted = program.and_then(|program| Ok(claimed.lease.starting(program, Vec::new())?));
    noted.unwrap_or_else(|error| log::warn!("{error:#}"));
    start::supervise(Start {
        options: &options.job,
        identity,
        lease: claimed.lease,
        path,
        root,
        keeper,
        parent: None,
        tracked: Tracked { cpu_baseline: options.cpu_baseline, ..Tracked::default() },
        attached: None,
        ended: None,
        running,
    })
}

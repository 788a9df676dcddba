//! `launch`: a new program, a new job.

use super::directory::{JobDir, resolve_here};
use super::ended::{CannotRun, Ended, NOT_FOUND, sudo_hint};
use super::identity::{Identity, under_sudo};
use super::in_freeze::Tracked;
use super::lease::{Claim, Lease, Purpose};
use super::options::LaunchOptions;
use super::process::ProcessId;
use super::record::{JobRecord, RecordedOptions};
use super::signals::Signals;
use super::start::{self, Start};
use super::terminal;
use crate::freeze::tree;
use crate::machine::TUNABLES;
use crate::sys::clone;
use crate::sys::spawn::{self, Detached, RunAs};
use anyhow::Context;
use std::sync::Arc;

/// Runs a program and supervises it.
pub fn launch(options: &LaunchOptions) -> anyhow::Result<Ended> {
    if !options.detach {
        return begin(options, &mut || ());
    }
    match spawn::detach().context("cannot go to the background")? {
        Detached::Parent(ended) => Ok(ended),
        Detached::Child(ready) => begin(options, &mut || ready.tell()),
    }
}

fn begin(options: &LaunchOptions, running: &mut dyn FnMut()) -> anyhow::Result<Ended> {
    let identity = Identity::of_caller(options.user.as_deref())?;
    let name = options.program.first().context("no program was given")?.clone();
    let path = resolve_here(options.job.dir.as_deref(), &name);
    let dir = Arc::new(JobDir::create(&path, &identity.fs_ids())?);
    let recorded = RecordedOptions::merged(&options.job, None);
    let claim = Claim {
        purpose: Purpose::Launch { new: options.new },
        take_over: options.job.take_over,
        options: recorded,
        argv: JobRecord::readable(&options.program),
    };
    let claimed = Lease::claim(&dir, claim)?;
    claimed.notes.iter().for_each(|note| log::warn!("{note}"));
    let signals = Signals::listen_with_witness(None).context("cannot listen for signals")?;
    tree::note_strangers();
    clone::become_subreaper().context("cannot become the reaper of the program's orphans")?;
    let run_as = identity.changed.then(|| RunAs {
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups.clone(),
    });
    let tunables = std::env::var_os(TUNABLES);
    let baseline = options.cpu_baseline.map(|baseline| baseline.environment(tunables.as_deref()));
    let environment =
        [if identity.changed { identity.env.clone() } else { Vec::new() }, baseline.unwrap_or_default()]
            .concat();
    let root = spawn::spawn(&options.program, &environment, signals.original, run_as)
        .map_err(|e| CannotRun::from_exec(&name.to_string_lossy(), under_sudo(), e))?;
    // Should ckptbpf be killed right then, what runs is known.
    let program = ProcessId::of(root.as_raw()).map_err(anyhow::Error::from);
    let noted = program.and_then(|program| Ok(claimed.lease.starting(program, Vec::new())?));
    noted.unwrap_or_else(|error| log::warn!("{error:#}"));
    let dir = claimed.lease.dir().clone();
    let ended = start::supervise(Start {
        options: &options.job,
        identity,
        lease: claimed.lease,
        path,
        root,
        signals,
        parent: None,
        tracked: Tracked { cpu_baseline: options.cpu_baseline, ..Tracked::default() },
        attached: None,
        ended: None,
        running,
    })?;
    // As ld.so(8) ends what lacks a library, and a shell what it does not find.
    if ended.exit_status() == NOT_FOUND && under_sudo() && dir.require_checkpoints().is_err() {
        terminal::say(&format!("{} ended with {NOT_FOUND}{}", name.to_string_lossy(), sudo_hint(true)));
    }
    Ok(ended)
}

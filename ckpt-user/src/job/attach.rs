//! `attach`: supervision for a program that ckptbpf did not start, and the single checkpoint of one that nobody
//! supervises.

use super::beside::{self, Beside};
use super::checkpoint::{After, Checkpointer};
use super::control::CheckpointDone;
use super::directory::{JobDir, resolve_here};
use super::ended::Ended;
use super::identity::{Identity, fs_ids_of};
use super::in_freeze::Tracked;
use super::lease::{Claim, Claimed, Lease, Purpose};
use super::options::{AttachOptions, CheckpointOptions, JobOptions};
use super::parent::Parent;
use super::process::{ProcessId, wait_for_end_of};
use super::record::RecordedOptions;
use super::registry::{self, Target};
use super::request::ITS_END;
use super::retention::KEEP;
use super::runtime_dir::RuntimeDir;
use super::signals::Signals;
use super::start::{self, Start};
use super::tracer;
use super::way::{Way, by_daemon};
use crate::daemon::admission;
use crate::daemon::link::{Heard, Link, Word};
use crate::daemon::told;
use crate::freeze::{tree, yama};
use crate::front;
use crate::refusal::named;
use crate::sys::bpf;
use crate::sys::pidfd;
use crate::task::iterators::Kernel;
use crate::task::limits;
use crate::task::proc::{ProcDir, reached_by};
use crate::track::backend::Backend;
use crate::track::reconcile::Reconcile;
use anyhow::{Context, bail};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::Builder;

/// A program that runs, and the directory claimed for it.
pub(super) struct Found {
    pub root: Pid,
    pub identity: Identity,
    pub claimed: Claimed,
    pub path: PathBuf,
}

/// Supervises a program that runs.
pub fn attach(options: &AttachOptions, way: &Way) -> anyhow::Result<Ended> {
    if let Some(ended) = by_daemon(way, None, &mut || ()) {
        return ended;
    }
    let pid = match beside::place(options.pid, way)? {
        Beside::As(pid) => pid,
        Beside::Ended(ended) => return Ok(ended),
    };
    tree::note_strangers();
    let found = find(pid, &options.job)?;
    let front = front_of(way);
    let keeper =
        front.map_or_else(|| Signals::listen().map(Parent::Us), |link| Parent::elsewhere(link, None));
    let keeper = keeper.context("cannot listen for signals")?;
    let pidfd = pidfd::open(found.root).context("the program is gone")?;
    let tracked = Tracked { standards_of: Some(found.root), ..Tracked::default() };
    start::supervise(Start {
        options: &options.job,
        identity: found.identity,
        lease: found.claimed.lease,
        path: found.path,
        root: found.root,
        keeper,
        // What it held before is another run's, or was taken by a supervisor that is gone: begin anew.
        parent: None,
        tracked,
        attached: Some(pidfd),
        ended: None,
        running: &mut || drop(front.map(|link| link.say(&Word::Running(true), &[]))),
    })
}

/// As a worker: the way to its front.
fn front_of(way: &Way) -> Option<&Arc<Link>> {
    match way {
        Way::Worker(link) => Some(link),
        _ => None,
    }
}

/// As a worker: takes in what its front says of another core, and ends with it.
fn end_with(front: &Link) {
    while let Ok(Some(Heard { word, descriptors })) = front.hear() {
        if matches!(word, Word::Programs(_)) {
            told::note_another(descriptors.into_iter().next());
        }
    }
    front::lost()
}

/// Takes one full checkpoint of a program that nobody supervises. Its id is as this process sees it
/// ([`beside::place`]).
pub fn checkpoint_once(options: &CheckpointOptions, way: &Way) -> anyhow::Result<CheckpointDone> {
    let job = JobOptions { dir: options.dir.clone(), ..JobOptions::default() };
    let front = front_of(way);
    let found = find(options.pid, &job)?;
    limits::raise_own();
    let lease = found.claimed.lease;
    let program = ProcessId::of(options.pid).context("the program is gone")?;
    // By its id here: in its pid namespace it is another one than for whoever reads job.json.
    let root = pidfd::open(found.root).context("the program is gone")?;
    lease.started(program, None)?;
    let record = lease.record();
    let tracked = Tracked { standards_of: Some(found.root), ..Tracked::default() };
    let mut checkpointer = Checkpointer {
        root: found.root,
        ended: Arc::default(),
        lease: lease.clone(),
        codec: start::codec(&record.options),
        backend: Backend::Full,
        keep: record.options.keep.unwrap_or(KEEP),
        events: None,
        program: record.argv.first().cloned().unwrap_or_default(),
        parent: None,
        tracked: Arc::new(Mutex::new(tracked)),
        kernel: front.map_or_else(Kernel::default, |_| Kernel::of_core()),
        reconcile: Reconcile::default(),
        bpf: bpf::Options::default(),
        seen: HashSet::new(),
        is_doubtful: true,
    };
    let _as = start::as_the_user(found.root, &lease)?;
    if let Some(link) = front.cloned() {
        let end = Builder::new().spawn(move || end_with(&link));
        end.context("cannot start a thread that listens to its front")?;
    }
    let (tracer, tasks) = tracer::channel()?;
    let after = if options.kill { After::Kill } else { After::Continue };
    let worker = Builder::new().spawn(move || checkpointer.run(&tracer, after));
    let worker = worker.context("cannot start a thread for the checkpoint")?;
    while !worker.is_finished() {
        tasks.wait();
        tasks.run_all();
    }
    let result = worker.join().map_err(|_| anyhow::anyhow!("the checkpoint thread failed"))?;
    // While it runs, its directory says so: nobody restarts a second one, and it can be attached to.
    if options.kill && result.is_ok() {
        lease.end_as(Ended::Checkpointed)?;
        // Who asked may restart it at once.
        wait_for_end_of(root.as_fd(), ITS_END.into());
    }
    Ok(result?)
}

/// The program, whose it is, and its directory.
pub(super) fn find(pid: i32, job: &JobOptions) -> anyhow::Result<Found> {
    let root = Pid::from_raw(pid);
    let dir = ProcDir::process(reached_by(root));
    let owner = std::fs::metadata(dir.path("status"));
    let owner = owner.with_context(|| format!("there is no process {pid} here"))?.uid();
    if tree::is_above(root, Pid::this()) {
        bail!(
            "process {} has started this ckptbpf, which would have to stop itself: start it from elsewhere (another \
             terminal, or a batch system)",
            named(root)
        );
    }
    // A worker of the program's own front asks for leave when it is refused.
    if !admission::may_be_asked() {
        yama::of(root).with_context(|| format!("cannot trace process {}", named(root)))?;
    }
    let mut argv: Vec<OsString> =
        dir.bytes("cmdline")?.split(|&b| b == 0).map(|w| OsString::from_vec(w.to_vec())).collect();
    argv.pop();
    let program = argv.first().cloned().unwrap_or_else(|| OsString::from("program"));
    let caller = Identity::current();
    let identity = match fs_ids_of(owner) {
        Some(ids) if ids.uid != caller.uid => {
            Identity { uid: ids.uid, gid: ids.gid, groups: ids.groups, name: owner.to_string(), ..caller }
        }
        _ => caller,
    };
    // A supervisor that was killed has left word of where it wrote.
    let pid = ProcessId::of(pid).context("the program is gone")?.pid;
    let known = || registry::find(&registry::live(&RuntimeDir::visible()), &Target::Pid(pid));
    let path = match (&job.dir, known().filter(|live| live.entry.program.pid == pid)) {
        (None, Some(live)) => live.entry.dir,
        _ => resolve_here(job.dir.as_deref(), Path::new(&program).as_os_str()),
    };
    let job_dir = Arc::new(JobDir::create(&path, &identity.fs_ids())?);
    let previous = job_dir.read_record()?;
    let claim = Claim {
        purpose: Purpose::Attach(pid),
        take_over: job.take_over,
        options: RecordedOptions::merged(job, previous.as_ref().map(|r| &r.options)),
        argv: super::record::JobRecord::readable(&argv),
    };
    let claimed = Lease::claim(&job_dir, claim)?;
    claimed.notes.iter().for_each(|note| log::warn!("{note}"));
    Ok(Found { root, identity, claimed, path })
}

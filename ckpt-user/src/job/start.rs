//! What launch, restart and attach have in common once the program is there: registry, control socket, the
//! line at the start, supervision, the record of the end.

use super::checkpoint::Checkpointer;
use super::control::Control;
use super::directory::DirectoryError;
use super::ended::Ended;
use super::events::EventLog;
use super::identity::Identity;
use super::in_freeze::Tracked;
use super::lazy::Lazy;
use super::lease::Lease;
use super::options::{Codec, JobOptions};
use super::parent::Parent;
use super::process::ProcessId;
use super::record::RecordedOptions;
use super::registry::{self, Entry, Registration};
use super::retention::KEEP;
use super::runtime_dir::RuntimeDir;
use super::supervisor::{self, Plan};
use super::terminal;
use crate::daemon::link::Heir;
use crate::freeze::tree;
use crate::image::GenerationId;
use crate::sys::bpf;
use crate::sys::ids::Assumed;
use crate::task::iterators::Kernel;
use crate::task::limits;
use crate::task::proc::{ProcDir, reached_by};
use crate::track::backend::{self, Backend};
use crate::track::reconcile::Reconcile;
use anyhow::Context;
use nix::unistd::Pid;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

/// A program that runs, and whose it is.
pub struct Start<'a> {
    pub options: &'a JobOptions,
    pub identity: Identity,
    pub lease: Lease,
    /// The directory as the person named it.
    pub path: PathBuf,
    pub root: Pid,
    /// Of the program.
    pub keeper: Parent,
    pub parent: Option<GenerationId>,
    pub tracked: Tracked,
    /// For a program that is not our child.
    pub attached: Option<OwnedFd>,
    /// How the first process ended, where others have outlived it.
    pub ended: Option<Ended>,
    /// Called once others can find the job.
    pub running: &'a mut dyn FnMut(),
}

/// Supervises it to its end.
pub fn supervise(start: Start<'_>) -> anyhow::Result<Ended> {
    let Start {
        options,
        identity,
        lease,
        path,
        root,
        mut keeper,
        parent,
        mut tracked,
        attached,
        ended,
        running,
    } = start;
    let record = lease.record();
    // Even a program that ends at once is there, as a zombie, until it is reaped.
    let program = ProcessId::of(root.as_raw()).context("the program is gone")?;
    tree::note_root(root);
    limits::raise_own();
    let known = make_known(&lease, &identity, program);
    let (control, _registration) = match known {
        Ok((control, registration)) => (Some(control), Some(registration)),
        Err(error) => {
            log::warn!("{error:#}");
            (None, None)
        }
    };
    // It runs already: whatever cannot be done for it from here on, it is supervised.
    let noted = lease.started(program, control.as_ref().map(Control::socket_path));
    noted.unwrap_or_else(|error| log::warn!("{error}"));
    keeper.is_supervised();
    running();
    let interval = record.options.interval();
    let name = record.argv.first().cloned().unwrap_or_default();
    if terminal::wants_start_line(options.verbose) {
        terminal::say(&terminal::start_line(&terminal::Start {
            program: &name,
            pid: program.pid,
            user: &identity.name,
            interval,
            dir: &path,
        }));
    }
    let backend = backend::choose(options.track);
    if backend != Backend::PagemapScan && tracked.pager.is_none() {
        // A restart comes with its pages write-protected.
        tracked.spaces.iter_mut().for_each(|s| s.uffd = None);
    }
    let events = || EventLog::open(lease.dir()).map_err(|e| log::warn!("{e}")).ok();
    let lazy = tracked.pager.clone().map(|pager| Lazy::new(pager, events()));
    let ended = Arc::new(ended.map_or_else(OnceLock::new, OnceLock::from));
    let heir = keeper.is_front().then(|| heir(&lease, &tracked));
    let checkpointer = Checkpointer {
        root,
        ended: ended.clone(),
        lease: lease.clone(),
        codec: codec(&record.options),
        backend,
        keep: record.options.keep.unwrap_or(KEEP),
        events: events(),
        program: name,
        parent,
        tracked: Arc::new(Mutex::new(tracked)),
        kernel: match (options.no_bpf, keeper.is_front()) {
            (true, _) => Kernel::none(),
            (false, true) => Kernel::of_core(),
            (false, false) => Kernel::default(),
        },
        reconcile: Reconcile::new(options.fault_log),
        bpf: bpf_options(options),
        seen: HashSet::new(),
        is_doubtful: parent.is_none(),
    };
    let plan = Plan {
        lazy,
        root,
        interval,
        exit_after_checkpoint: options.exit_after_ckpt,
        checkpoint_signal: record.options.ckpt_signal,
        term_ends: options.term_ends,
        control,
        dir: path,
        attached,
        ended,
        heir,
    };
    let _as = as_the_user(root, &lease)?;
    let ended = supervisor::supervise(plan, &mut keeper, checkpointer)?;
    // A program that was let go (attach) runs on, and its directory says so.
    let over = if program.runs() { Ok(()) } else { lease.end_as(ended) };
    over.unwrap_or_else(|error| log::warn!("{error}"));
    Ok(ended)
}

/// What the one in this worker's place would have to know.
fn heir(lease: &Lease, tracked: &Tracked) -> Heir {
    Heir {
        dir: lease.dir().absolute().into_os_string().into_vec(),
        cpu_baseline: tracked.cpu_baseline.map(|level| level.name().to_owned()).unwrap_or_default(),
        cpu_time_before: u64::try_from(tracked.cpu_time_before.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// Root without CAP_DAC_OVERRIDE may not read a user's process, and that user may: its file-system ids for this thread,
/// and for those it starts, until the guard is dropped.
pub fn as_the_user(root: Pid, lease: &Lease) -> Result<Option<Assumed>, DirectoryError> {
    let closed = std::fs::File::open(ProcDir::process(reached_by(root)).path("mem"))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    closed.then(|| lease.dir().assume()).transpose()
}

/// As test hooks have it.
fn bpf_options(options: &JobOptions) -> bpf::Options {
    let defaults = bpf::Options::default();
    bpf::Options {
        lifecycle_ring: options.ring_bytes.unwrap_or(defaults.lifecycle_ring),
        fault_ring: options.ring_bytes.unwrap_or(defaults.fault_ring),
        ..defaults
    }
}

/// How the job's pages are stored.
pub fn codec(options: &RecordedOptions) -> crate::image::Codec {
    match options.compress.unwrap_or_default() {
        Codec::Lz4 => crate::image::Codec::Lz4,
        Codec::None => crate::image::Codec::None,
    }
}

fn make_known(
    lease: &Lease,
    identity: &Identity,
    program: ProcessId,
) -> anyhow::Result<(Control, Registration)> {
    let runtime = Arc::new(RuntimeDir::for_user(&identity.fs_ids())?);
    let supervisor = ProcessId::current()?;
    let control = Registration::with_control(&runtime, supervisor)?;
    let record = lease.record();
    let entry = Entry {
        job: record.job,
        dir: lease.dir().absolute(),
        program,
        supervisor,
        argv: record.argv,
        uid: identity.uid,
        socket: control.socket_path(),
        front: registry::front(),
        dmtcp: record.options.dmtcp,
    };
    let registration = Registration::new(&runtime, &entry)?;
    Ok((control, registration))
}

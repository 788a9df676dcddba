//! From an image back to running processes.
//!
//! ```text
//!  clocks ─▶ objects (in ckptbpf) ─▶ skeleton tree (clone3 set_tid, forked from ckptbpf)
//!     ─▶ per process: clear ─▶ vdso ─▶ mappings ─▶ pages ─▶ layout ─▶ descriptors ─▶ threads ─▶ identity
//!     ─▶ late descriptors (pidfds of threads, files of /proc)
//!     ─▶ resume (registers, detach)
//! ```
//! Until [`resume`] not one instruction of the program has run, and any error ends all skeletons: they are
//! traced with PTRACE_O_EXITKILL. ckptbpf has one thread until the skeletons exist.

pub mod clocks;
pub mod execute;
pub mod fill;
pub mod foreground;
pub mod late;
pub mod mappings;
pub mod nursery;
pub mod objects;
pub mod plan;
pub mod process;
pub mod resume;
pub mod room;
pub mod skeleton;
pub mod taken;

use crate::daemon::lender::Lender;
use crate::image::{Chain, ImageError};
use crate::memory::{hugetlb, map_count, vdso};
use crate::page::{Pager, Plan};
use crate::record::Image;
use crate::sys::ids::FsIds;
use crate::sys::wait;
use crate::task::filters;
use crate::task::keyring::Joined;
use crate::task::policy;
use nix::unistd::Pid;
use nursery::Nursery;
use std::collections::HashSet;

/// Why a restart cannot be done. Nothing runs, no file has changed.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("{0}")]
    Image(#[from] ImageError),
    #[error("the image cannot be restarted here: {0}")]
    Refused(String),
    #[error("cannot rebuild {what} of process {pid}")]
    Process { pid: i32, what: String, source: std::io::Error },
}

/// Adds the process and the thing to an I/O error.
pub trait Rebuilding<T> {
    fn rebuilding(self, pid: i32, what: &str) -> Result<T, RebuildError>;
}

impl<T> Rebuilding<T> for std::io::Result<T> {
    fn rebuilding(self, pid: i32, what: &str) -> Result<T, RebuildError> {
        self.map_err(|source| RebuildError::Process { pid, what: what.to_owned(), source })
    }
}

/// A rebuilt tree that has not run yet.
pub struct Rebuilt {
    pub processes: Vec<process::RebuiltProcess>,
    pub root: Pid,
    /// Lazy: serves the pages from before the first thread runs.
    pub pager: Option<Pager>,
    /// Shared memory; files among it are written back before the program runs.
    pub shared: Vec<crate::memory::shared::Restored>,
    pub watchers: late::Watchers,
    pub endpoints: late::Endpoints,
}

/// How the pages come.
#[derive(Debug)]
pub enum Mode {
    /// All before the program runs.
    Eager,
    /// On demand and in the background.
    Lazy(Plan),
}

/// The processes of a restart until they run: should it fail, they are gone before anybody hears of it.
pub struct Unfinished(Vec<Pid>);

impl Unfinished {
    /// Those of `image`, before any of them is made.
    pub fn of(image: &Image) -> Self {
        Self(image.nodes().iter().map(|node| Pid::from_raw(node.pid)).collect())
    }

    /// They run.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        wait::end_all(&self.0, taken::WAIT);
    }
}

/// Rebuilds the tree of `image`, which has passed [`check`], with the pages of `chain`. Its ids are free ([`taken`]). `sound` as for
/// [`objects::make`].
///
/// # Errors
/// Named; what has been made so far goes with [`Unfinished`].
pub fn rebuild(
    image: &Image,
    chain: &Chain,
    mode: Mode,
    owner: &FsIds,
    sound: &HashSet<(u64, u64)>,
    nursery: &Nursery,
    lender: Option<&'static Lender>,
) -> Result<Rebuilt, RebuildError> {
    let _as_the_program = policy::assume_common(image);
    let original_time = nursery.enter_clocks(image.clocks.as_ref()).rebuilding(0, "the clocks")?;
    let mut objects = objects::make(image, chain, owner, sound, lender, nursery)?;
    let mut skeletons = skeleton::plant(image, original_time, nursery, &objects)?;
    if let Some(first) = skeletons.first_mut() {
        objects.fill_shared(chain, &mut first.remote)?;
    }
    late::by_ids(image, &mut skeletons, &mut objects)?;
    late::messages(image, &objects, owner.uid == 0)?;
    late::connections(image, &objects, owner.uid == 0)?;
    let root = skeletons.first().map_or(Pid::from_raw(0), |s| s.remote.pid());
    let mut mapped = Vec::with_capacity(skeletons.len());
    let lazy = matches!(mode, Mode::Lazy(_));
    for (record, skeleton) in image.processes.iter().zip(skeletons) {
        mapped.push(process::map(record, skeleton, &objects, image, chain, nursery, lazy)?);
    }
    // From here on the kernel touches their memory: the pages are there, or somebody serves them.
    let pager = match mode {
        Mode::Eager => {
            fill::eager(&mapped, chain)?;
            for process in mapped.iter_mut().filter(|p| map_count::is_near(p.record.mappings.len())) {
                process.watch.uffd = None;
            }
            None
        }
        Mode::Lazy(plan) => Some(fill::lazy(&mapped, chain, plan)?),
    };
    let mut joined = Joined::default();
    let mut processes = mapped
        .into_iter()
        .map(|one| process::complete(one, image, &objects, owner, nursery, &mut joined))
        .collect::<Result<Vec<_>, RebuildError>>()?;
    for thread in processes.iter_mut().flat_map(|p| &mut p.threads) {
        let pid = thread.pid();
        joined.close(pid, thread).rebuilding(pid.as_raw(), "its session keyring")?;
    }
    late::at_last(image, &mut processes, &objects)?;
    let watchers = late::Watchers::of(image, &objects)?;
    let endpoints = late::Endpoints::of(image, &objects)?;
    Ok(Rebuilt { processes, root, pager, shared: objects.restored, watchers, endpoints })
}

/// What can be known to fail before anything is made.
pub fn check(image: &Image, chain: &Chain, owner: &FsIds) -> Result<(), RebuildError> {
    let refused = |reason: String| Err(RebuildError::Refused(reason));
    filters::check(image, owner.uid == 0).map_err(RebuildError::Refused)?;
    let Some(machine) = &image.machine else {
        return refused("it does not say what machine it was made on".to_owned());
    };
    if image.processes.is_empty() {
        return refused("it holds no process".to_owned());
    }
    let here = crate::machine::cpu_features();
    let missing = crate::machine::missing(&machine.cpu_features, &here);
    if !missing.is_empty() {
        return refused(format!("this CPU lacks what the program may be using: {}", missing.join(" ")));
    }
    let own = vdso::own().rebuilding(0, "the vdso")?;
    if own.fingerprint != machine.vdso {
        vdso::stand_in::check(image, machine, &own.image).map_err(RebuildError::Refused)?;
    }
    hugetlb::check(image, chain).map_err(RebuildError::Refused)?;
    room::check(image).map_err(RebuildError::Refused)?;
    image.processes.iter().try_for_each(map_count::check).map_err(RebuildError::Refused)
}

/// What tracking and the pager need of a rebuilt process afterwards.
pub struct Tracked {
    pub pid: Pid,
    pub space: u32,
    pub watch: fill::Watch,
    /// Private pages that the chain holds.
    pub saved: crate::memory::runs::PageSet,
    /// Pages that it knows to be zeros.
    pub zero: crate::memory::runs::PageSet,
}

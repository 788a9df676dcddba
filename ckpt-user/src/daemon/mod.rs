//! The privileged service: for users without root it does what takes rights, and nothing else.
//!
//! ```text
//!  in the job's control group, with the user's rights   │ in the daemon's control group
//!  front: ckptbpf launch ───────── link ────────────────┼── worker, one a job: the user's ids, no capability
//!    └─ program                                         │   core: root; accepts, judges (peer), starts workers
//! ```
//! The core opens no path of a user's and parses no image; messages to it have a fixed size ([`wire`]). **A worker is worth no
//! more than its user**: whoever is held back by something that a worker would not be held back by gets none
//! ([`peer`], [`become_worker`], and the challenge of [`worker`]); so a worker that is turned against its user's will is no
//! gain to anybody. It has its own memory, and the daemon's control group or one of its user's below that ([`subgroups`]), so that
//! the job's limits are the program's.

pub mod admission;
pub mod asked;
mod background;
mod become_worker;
mod bounds;
mod faults;
mod groups;
pub mod ids;
mod leave;
pub mod lender;
pub mod limits;
pub mod link;
pub mod log_lines;
pub mod numbering;
mod object;
mod peer;
pub mod place;
mod proc_fd;
mod questions;
mod rates;
mod serve;
mod spawn;
pub mod subgroups;
mod teller;
pub mod told;
mod veil;
pub mod wire;
pub mod worker;

use crate::freeze::yama::Scope;
use crate::sys::caps;
use crate::task::limits as resource_limits;
use crate::task::proc::ProcDir;
use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, geteuid};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use tokio::runtime::Builder;

pub use serve::Rules;
use subgroups::{Share, Subgroups};
use teller::Teller;

/// How it is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub socket: Option<PathBuf>,
    pub rules: Rules,
    /// What the workers of one user may have together.
    pub share: Share,
    /// In the background, once it listens: its process id is written there.
    pub pidfile: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub verbose: u8,
}

/// What the core needs: ids and namespaces of workers (SETGID, SETUID, SYS_CHROOT, SYS_ADMIN), looking at clients
/// (SYS_PTRACE), and ending workers that have outlived them (KILL).
const KEPT: &[u32] = &[5, 6, 7, 18, 19, 21];

/// Threads that answer questions of workers: of one user one at a time. As many are there for what takes long beside clients.
const TELLERS: usize = 512;

/// Serves until it is asked to end.
///
/// # Errors
/// It cannot begin: not root, or the socket is not to be had.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the daemon is root's: have systemd or a Slurm prolog start it (docs/security.md), or use sudo"
        );
    }
    // Then whoever becomes another user is open to that for a moment.
    if std::fs::read_to_string("/proc/sys/fs/suid_dumpable").is_ok_and(|mode| mode.trim() == "1") {
        bail!(
            "fs.suid_dumpable is 1, which opens set-user-id programs and the daemon's workers to their users: set it to 0"
        );
    }
    let mut running = background::begin(options)?;
    // Its end is told by SIGHUP, and so is, to a service, that its log is to be opened again.
    let has_terminal = ProcDir::process(Pid::this()).stat().is_ok_and(|stat| stat.terminal() != 0);
    umask(Mode::from_bits_truncate(0o022));
    log_lines::init(options.verbose, options.log.is_some());
    leave::leave(options.share != Share::default());
    let (place, listener) = place::Place::made(options.socket.as_deref(), options.rules.uid)?;
    // Workers have these limits of it, and once rights are laid down they stay as they are.
    if let Err(error) = resource_limits::raise_to_most() {
        log::info!("workers have no more open files, and no larger ones, than the daemon may have: {error}");
    }
    // Before rights are laid down: it takes addresses of the kernel's functions.
    let teller = Teller::load()
        .map_err(|error| log::warn!("workers inject system calls for what eBPF would read: {error}"))
        .ok();
    caps::keep_only(KEPT).context("cannot lay down rights")?;
    log_lines::begin_writing().context("cannot start a thread")?;
    let subgroups = Subgroups::begin(options.share).map(Arc::new);
    // One thread for each connection that there may be, so that nobody waits for somebody else's.
    let threads = options.rules.limits.all as usize + TELLERS;
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(threads).build()?;
    let tellers = Builder::new_current_thread().max_blocking_threads(TELLERS).build()?;
    let told = (teller, tellers.handle().clone());
    let ended = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        running.told()?;
        log::info!("listening at {}", place.path().display());
        if let Some(served) = Scope::now().for_served() {
            log::info!("{served}");
        }
        let mut served = pin!(serve::serve(listener, options.rules, told, subgroups.clone()));
        loop {
            tokio::select! {
                served = &mut served => return served,
                _ = term.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
                _ = hangup.recv() => match &options.log {
                    Some(log) => log_lines::open_again(log),
                    None if has_terminal => return Ok(()),
                    None => log::info!("there is no log of its own to be opened again"),
                },
            }
        }
    });
    running.over();
    place.leave();
    // Clients that take their time are not waited for.
    runtime.shutdown_background();
    tellers.shutdown_background();
    if let Some(subgroups) = &subgroups {
        subgroups.end();
    }
    log::info!("ended; what it had started for jobs goes on");
    log::logger().flush();
    Ok(ended?)
}

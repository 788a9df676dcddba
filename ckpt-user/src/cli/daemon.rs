//! `ckptbpf daemon`: the privileged service for users without root.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{Status, print, size};
use crate::daemon::limits::Limits;
use crate::daemon::subgroups::Share;
use crate::daemon::{self, Options, Rules, place, worker};
use crate::freeze::yama::Scope;
use crate::front::door::{Door, NoDoor};

/// Serve users without root: what takes rights is done for them, and nothing else
///
/// Run it as root: by systemd, by a Slurm prolog (--pidfile returns once it listens), or in the foreground. Ending it ends no job.
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!(
    "sudo ckptbpf daemon --pidfile /run/ckptbpf/daemon.pid --log /var/log/ckptbpf.log",
    "ckptbpf daemon --check",
))]
pub struct Daemon {
    /// Where to listen [default: /run/ckptbpf/daemon.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Serve this user alone
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..))]
    uid: Option<u32>,
    /// Serve processes of this Slurm job alone
    #[arg(long, value_name = "ID")]
    job: Option<u32>,
    /// How many jobs one user may have with it
    #[arg(long, value_name = "N", default_value_t = Limits::default().workers)]
    jobs: u32,
    /// How much memory the workers of one user may take together: bytes, or 512M, 4G [default: what the daemon may]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    worker_memory: Option<u64>,
    /// How many threads the workers of one user may have together [default: what the daemon may]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    worker_tasks: Option<u32>,
    /// Go to the background once it listens, and write its process id there
    #[arg(long, value_name = "PATH")]
    pidfile: Option<PathBuf>,
    /// Where its log goes [default: standard error]
    #[arg(long, value_name = "PATH")]
    log: Option<PathBuf>,
    /// Lend users no userfaultfd: their restarts are not lazy
    #[arg(long)]
    no_lazy: bool,
    /// Only say whether a daemon answers there; exit status 1 if none does
    #[arg(long)]
    check: bool,
    /// -v: what is refused, too; -vv: more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    #[arg(long, hide = true)]
    worker: bool,
}

impl Daemon {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        if self.worker {
            return worker::main().map(Status);
        }
        if self.check {
            return self.check();
        }
        let limits = Limits { workers: self.jobs, ..Limits::default() };
        let Self { socket, uid, job, pidfile, log, verbose, no_lazy, .. } = self;
        let rules = Rules { uid, job, faults: !no_lazy, limits };
        let share = Share { memory: self.worker_memory, tasks: self.worker_tasks };
        daemon::run(&Options { socket, rules, share, pidfile, log, verbose })?;
        Ok(Status::DONE)
    }

    fn check(self) -> anyhow::Result<Status> {
        let path = self.socket.unwrap_or_else(|| place::NODE.into());
        let shown = path.display();
        match Door::found(&path) {
            Ok(door) => {
                let (pid, workers, most) = (door.welcome.pid, door.welcome.workers, door.welcome.most);
                let yama = Scope::now().for_served().map_or_else(String::new, |served| format!("{served}\n"));
                print::print(&format!(
                    "daemon {pid} at {shown}: {workers} of {most} jobs of this user\n{yama}"
                ))?;
                Ok(Status::DONE)
            }
            Err(NoDoor::Nobody) => {
                print::print(&format!("no daemon at {shown}\n"))?;
                Ok(Status::NO)
            }
            Err(other) => {
                print::print(&format!("the daemon at {shown} does not serve this user: {other}\n"))?;
                Ok(Status::NO)
            }
        }
    }
}

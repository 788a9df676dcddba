//! The options of DMTCP's four programs: of which of them, and what they mean here.

use super::options::{Join, Order, Program, Tell};
use Means::{Had, InVain, InVainWith, Refused};
use Program::{Command, Coordinator, Launch, Restart};

/// What an option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    Interval,
    CheckpointDir,
    RestartDir,
    Compressed(bool),
    ExitAfter,
    ExitOnLast,
    Daemon,
    Host,
    HostFile,
    Port,
    PortFile,
    Join(Join),
    Quiet,
    Tell(Tell),
    Order(Order),
    /// It is so in any case.
    Had,
    /// Accepted, and told.
    InVain,
    /// The same with a value.
    InVainWith,
    /// It would change what the program does, in a way that there is not here.
    Refused(&'static str),
}

/// An option by all its names.
pub struct Row {
    pub names: &'static [&'static str],
    pub of: &'static [Program],
    pub means: Means,
}

const fn row(names: &'static [&'static str], of: &'static [Program], means: Means) -> Row {
    Row { names, of, means }
}

const PLUGINS: &str = "plugins of DMTCP are loaded into the program, and nothing is loaded here";
const ALL: &[Program] = &[Launch, Restart, Coordinator, Command];
const JOBS: &[Program] = &[Launch, Restart];
const LONG_LIVED: &[Program] = &[Launch, Restart, Coordinator];

/// By the source of DMTCP 2.6 to 4 (dmtcp_launch.cpp and its three fellows).
pub const OPTIONS: &[Row] = &[
    row(&["--help"], ALL, Means::Tell(Tell::Help)),
    row(&["--version"], ALL, Means::Tell(Tell::Version)),
    row(&["-i", "--interval"], ALL, Means::Interval),
    row(&["-c", "--ckptdir"], &[Launch], Means::CheckpointDir),
    row(&["-d", "--ckptdir"], &[Restart], Means::CheckpointDir),
    row(&["--restartdir"], &[Restart], Means::RestartDir),
    row(&["--gzip"], &[Launch], Means::Compressed(true)),
    row(&["--no-gzip"], &[Launch], Means::Compressed(false)),
    row(&["--exit-after-ckpt", "--kill-after-ckpt"], LONG_LIVED, Means::ExitAfter),
    row(&["--exit-on-last"], &[Coordinator], Means::ExitOnLast),
    // None is left behind in any case.
    row(&["--exit-on-last"], JOBS, Had),
    row(&["--daemon"], &[Coordinator], Means::Daemon),
    row(&["-h", "--host", "--coord-host"], ALL, Means::Host),
    row(&["--hostfile"], &[Restart], Means::HostFile),
    row(&["-p", "--port", "--coord-port"], ALL, Means::Port),
    row(&["--port-file"], LONG_LIVED, Means::PortFile),
    row(&["-j", "--join", "--join-coordinator"], JOBS, Means::Join(Join::Existing)),
    row(&["--new-coordinator"], JOBS, Means::Join(Join::New)),
    row(&["--any-coordinator"], JOBS, Means::Join(Join::Any)),
    row(&["-q", "--quiet"], LONG_LIVED, Means::Quiet),
    row(&["-s", "--status"], &[Command], Means::Order(Order::Status)),
    row(&["-l", "--list"], &[Command], Means::Order(Order::List)),
    row(&["-c", "--checkpoint", "-bc", "--bcheckpoint"], &[Command], Means::Order(Order::Checkpoint)),
    row(&["-kc", "--kcheckpoint"], &[Command], Means::Order(Order::CheckpointAndKill)),
    row(&["-k", "--kill"], &[Command], Means::Order(Order::Kill)),
    row(&["-q", "--quit"], &[Command], Means::Order(Order::Quit)),
    // What the program writes is cut back at a restart.
    row(&["--ckpt-open-files", "--checkpoint-open-files", "--allow-file-overwrite"], &[Launch], Had),
    row(&["--no-plugins", "--disable-all-plugins", "--disable-alloc-plugin"], JOBS, Had),
    row(&["--disable-dl-plugin", "--disable-ipc-plugin", "--disable-svipc-plugin"], JOBS, Had),
    row(&["--disable-timer-plugin", "--disable-pid-plugin"], JOBS, Had),
    row(&["--no-strict-checking", "--no-strict-uid-checking"], JOBS, InVain),
    row(&["--no-coordinator"], JOBS, InVain),
    // A signal of DMTCP's own, which its library in the program takes.
    row(&["--ckpt-signal"], JOBS, InVainWith),
    row(&["-t", "--tmpdir"], LONG_LIVED, InVainWith),
    row(&["-c", "--ckptdir", "--timeout", "--stale-timeout"], &[Coordinator], InVainWith),
    row(&["--coord-logfile"], LONG_LIVED, InVainWith),
    row(&["--rm", "--batch-queue", "--ib", "--infiniband"], JOBS, InVain),
    row(&["--debug-restart-pause"], &[Restart], InVainWith),
    row(&["--modify-env"], JOBS, Refused("the program's environment is part of its memory")),
    row(&["--pathvirt"], JOBS, Refused("paths are those that the program knows")),
    row(&["--with-plugin"], JOBS, Refused(PLUGINS)),
    row(&["--kernel-loader"], JOBS, Refused("programs are started by the kernel alone")),
];

//! The command line: one file per verb, which parses and prints; what is done is the library's.
//!
//! docs/cli.md is the contract; `tests/cli_contract.rs` holds the two together. Usage errors exit with 125, never
//! with clap's 2, which could be the program's own status.

mod args;
mod attach;
mod check;
mod checkpoint;
pub(crate) mod compat;
mod daemon;
pub(crate) mod duration;
mod inspect;
mod launch;
mod list;
mod print;
mod prune;
mod restart;
mod run;
pub(crate) mod signal;
mod size;
mod slurm;
mod status;
mod verify;
mod version;
mod words;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::image::{Kind, Summary};
use crate::job::directory;
use crate::job::ended::{CannotRun, Ended, FAILED};
use crate::job::identity::Identity;
use crate::job::terminal::{init_log, say};
use crate::job::way::Way;
use crate::planted;
use crate::sys::ids::Assumed;

pub use version::version_string;

/// The two examples at the end of a verb's help.
macro_rules! examples {
    ($first:literal, $second:literal $(,)?) => {
        concat!("Examples:\n  ", $first, "\n  ", $second)
    };
}
use examples;

/// Transparent checkpoint and restart of Linux programs
#[derive(Debug, Parser)]
#[command(name = "ckptbpf", version = version_string(), max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = examples!("sudo ckptbpf launch -i 10 ./count", "ckptbpf restart --lazy ckpt_count"))]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Launch(launch::Launch),
    Restart(restart::Restart),
    Run(Box<run::Run>),
    Attach(attach::Attach),
    Checkpoint(checkpoint::Checkpoint),
    Status(status::Status),
    List(list::List),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Prune(prune::Prune),
    Check(check::Check),
    Daemon(daemon::Daemon),
    Compat(compat::Compat),
    Slurm(slurm::Slurm),
}

/// What a verb exits with when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status(u8);

impl Status {
    const DONE: Self = Self(0);
    /// `verify`: damaged. `check`: does not work here.
    const NO: Self = Self(1);
}

impl From<Ended> for Status {
    fn from(ended: Ended) -> Self {
        Self(ended.exit_status())
    }
}

/// The whole of the command line as clap knows it, for tests and for shell completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process, which may be that of a name of DMTCP's; the result is its exit status. A defect that
/// panics is ckptbpf's own failure, too, and must not look like a status of the program's.
pub fn main() -> ExitCode {
    let status = std::panic::catch_unwind(|| {
        if planted::is("panic") {
            panic!("a planted one");
        }
        if let Some(program) = compat::called_as() {
            return compat::main(program);
        }
        match Cli::try_parse() {
            Ok(cli) => run(cli.verb, Way::choose),
            Err(error) => usage(&error),
        }
    });
    ExitCode::from(status.unwrap_or_else(|_| compat::called_as().map_or(FAILED, |_| compat::failed())))
}

/// The same as a worker, with the command line of its front; `way` leads to that.
pub fn for_front(words: Vec<OsString>, way: &Way) -> u8 {
    match Cli::try_parse_from(words) {
        Ok(Cli { verb: verb @ (Verb::Launch(_) | Verb::Restart(_) | Verb::Run(_)) }) => {
            run(verb, || way.clone())
        }
        // One in the place of another has nothing else to do than that.
        Ok(Cli { verb: verb @ (Verb::Attach(_) | Verb::Checkpoint(_)) }) if matches!(way, Way::Worker(_)) => {
            run(verb, || way.clone())
        }
        Ok(_) => {
            say("a worker launches, restarts and supervises programs, and does nothing else");
            FAILED
        }
        Err(error) => usage(&error),
    }
}

/// `way` is asked by verbs that may need somebody's rights.
fn run(verb: Verb, way: impl Fn() -> Way) -> u8 {
    let done = match verb {
        Verb::Launch(verb) => verb.run(&way()),
        Verb::Restart(verb) => verb.run(way),
        Verb::Run(verb) => verb.run(way),
        Verb::Attach(verb) => verb.run(way),
        Verb::Checkpoint(verb) => verb.run(way),
        Verb::Status(verb) => verb.run(),
        Verb::List(verb) => verb.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Verify(verb) => verb.run(),
        Verb::Prune(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Daemon(verb) => verb.run(),
        Verb::Compat(verb) => verb.run(),
        Verb::Slurm(verb) => verb.run(way),
    };
    match done {
        Ok(Status(status)) => status,
        Err(error) => {
            complain(&error);
            error
                .chain()
                .find_map(|cause| cause.downcast_ref::<CannotRun>())
                .map_or(FAILED, CannotRun::exit_status)
        }
    }
}

/// Help and version are what was asked for; everything else clap stops at is a usage error.
fn usage(error: &clap::Error) -> u8 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let text = error.render().to_string();
        return print::print(&text).map_or(FAILED, |()| 0);
    }
    let text = error.render().to_string();
    say(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
    FAILED
}

/// An error with its causes, each on a line; a cause that its parent has already told is not repeated.
fn complain(error: &anyhow::Error) {
    let mut told = error.to_string();
    say(&told);
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            say(&format!("  because: {cause}"));
            told = cause;
        }
    }
}

/// Sets the log up for a verb that has one.
fn log_level(verbose: u8) {
    init_log(verbose);
}

/// Takes the file-system ids with which a directory or file of checkpoints is to be read: never root's for a user's.
fn as_owner(path: &Path) -> anyhow::Result<Assumed> {
    let caller = Identity::of_caller(None)?;
    let ids = directory::reader_of(path, &caller.fs_ids())?;
    Ok(ids.assume()?)
}

/// A source on another node is not a path.
fn refuse_remote(source: &Path) -> io::Result<()> {
    if source.to_string_lossy().starts_with("tcp://") {
        let what =
            "tcp:// sources are not in this version; copy the directory here, or use a shared file system";
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    Ok(())
}

fn kind_name(summary: &Summary) -> &'static str {
    match summary.kind() {
        Kind::Full => "full",
        Kind::Delta => "delta",
    }
}

//! The names of DMTCP, by which job scripts call this program: `dmtcp_launch`, `dmtcp_restart`, `dmtcp_coordinator` and
//! `dmtcp_command` are links to it.
//!
//! ```text
//! argv[0] ─▶ options (table) ─▶ environment ─┬▶ launch │ restart ─▶ a command line of ckptbpf's own ─▶ the verb
//!                                            └▶ coordinator │ command ─▶ job::coordinator, control sockets
//! ```
//! What comes of it is told as DMTCP tells it: the program's status, 0 where it ended with its checkpoint, 99 (or
//! `DMTCP_FAIL_RC`) where ckptbpf itself has failed. docs/dmtcp.md is the page for people.

mod command;
mod coordinator;
mod environment;
mod help;
mod host;
mod install;
mod joined;
mod launch;
pub(crate) mod options;
mod restart;
mod table;

use super::{Cli, Verb, complain, log_level};
use crate::job::coordinator::{self as coordinators, Name};
use crate::job::ended::{self, Ended};
use crate::job::identity::Identity;
use crate::job::process;
use crate::job::terminal::say;
use crate::job::way::Way;
use anyhow::{Context, anyhow, bail};
use clap::Parser;
use nix::sys::prctl;
use options::{Asked, Program, Tell};
use std::ffi::OsString;

pub use install::Compat;

/// Which of them this process was called as, if it was one.
pub fn called_as() -> Option<Program> {
    Program::of(&std::env::args_os().next()?)
}

/// Does what is asked for by that name; what to exit with.
pub fn main(program: Program) -> u8 {
    // As ckptbpf is looked for by others.
    let _ = prctl::set_name(c"ckptbpf");
    log_level(0);
    done(program).unwrap_or_else(|error| {
        complain(&error);
        failed()
    })
}

fn done(program: Program) -> anyhow::Result<u8> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let asked = options::parse(program, &words)
        .and_then(|asked| environment::complete(asked, program, |name| std::env::var_os(name)))
        .map_err(|why| anyhow!("{why}; {} --help shows what there is", program.name()))?;
    if let Some(tell) = asked.tell {
        let text = match tell {
            Tell::Help => help::text(program),
            Tell::Version => help::version(program),
        };
        super::print::print(&text)?;
        return Ok(0);
    }
    if !asked.is_quiet && !asked.in_vain.is_empty() {
        say(&format!("without effect here, and not needed: {}", asked.in_vain.join(", ")));
    }
    if matches!(program, Program::Launch | Program::Restart) {
        require_outermost(program)?;
    }
    match program {
        Program::Launch => launch::run(&asked).map(status_of),
        Program::Restart => restart::run(&asked).map(status_of),
        Program::Coordinator => coordinator::run(&asked).map(|()| 0),
        Program::Command => command::run(&asked).map(|()| 0),
    }
}

/// All that a supervised program starts is part of its checkpoints, and ckptbpf can be part of none.
fn require_outermost(program: Program) -> anyhow::Result<()> {
    let Some(pid) = process::ckptbpf_above() else { return Ok(()) };
    let name = program.name();
    bail!(
        "this is started by a program of which ckptbpf (pid {pid}) takes checkpoints already, with all that it starts: go \
         without {name} in there, or call it from outside"
    )
}

/// What ckptbpf's own failures exit with.
pub fn failed() -> u8 {
    environment::failure(std::env::var_os("DMTCP_FAIL_RC").as_deref())
}

/// How a job's end is told by a status.
fn status_of(ended: Ended) -> u8 {
    match ended {
        Ended::Checkpointed => 0,
        Ended::Exited(ended::FAILED) => failed(),
        other => other.exit_status(),
    }
}

/// What launches and restarts tell their verb beside what each has of its own.
fn common(asked: &Asked, name: Name, state: Option<&coordinators::State>) -> Vec<OsString> {
    let interval = asked.interval.or_else(|| state?.interval_s);
    let exits = asked.exit_after_checkpoint || state.is_some_and(|state| state.exit_after_ckpt);
    let interval = interval.map(|seconds| format!("--interval={seconds}"));
    let exits = exits.then(|| "--exit-after-ckpt".to_owned());
    [Some(format!("--dmtcp={name}")), interval, exits].into_iter().flatten().map(OsString::from).collect()
}

/// An option of ckptbpf's with a path, which may look like an option itself.
fn with_path(option: &str, path: impl Into<OsString>) -> OsString {
    let path: OsString = path.into();
    let mut word = OsString::from(format!("{option}="));
    word.push(path);
    word
}

/// Does what a command line of ckptbpf's own asks for, as a job of the coordinator's.
fn job(words: Vec<OsString>, name: Name) -> anyhow::Result<Ended> {
    let caller = Identity::of_caller(None)?.fs_ids();
    let cli = Cli::try_parse_from(&words).context("a command line of DMTCP's was not understood")?;
    // A daemon's worker is told what was understood, and does not guess again.
    let way = move || Way::choose().asking(words.clone());
    let ended = match cli.verb {
        Verb::Launch(launch) => launch.ended(&way())?,
        Verb::Restart(restart) => restart.ended(way)?,
        _ => bail!("a name of DMTCP's launches and restarts programs, and nothing else"),
    };
    coordinators::has_ended(name, ended == Ended::Checkpointed, &caller);
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_dmtcp_tells_them() {
        assert_eq!(status_of(Ended::Checkpointed), 0);
        assert_eq!(status_of(Ended::Exited(85)), 85);
        assert_eq!(status_of(Ended::Signaled(libc::SIGTERM)), 143);
    }

    #[test]
    fn what_a_coordinator_says_goes_for_its_jobs_unless_they_say_otherwise() {
        let name = Name { port: 7779, slurm_job: None };
        let state = coordinators::State { interval_s: Some(60), exit_after_ckpt: true, ..Default::default() };
        let asked = Asked { interval: Some(5), ..Asked::default() };
        assert_eq!(common(&asked, name, Some(&state)), ["--dmtcp=7779", "--interval=5", "--exit-after-ckpt"]);
        assert_eq!(common(&Asked::default(), name, Some(&state))[1], "--interval=60");
        assert_eq!(common(&Asked::default(), name, None), ["--dmtcp=7779"]);
        assert_eq!(with_path("--dir", "-x"), "--dir=-x");
    }
}

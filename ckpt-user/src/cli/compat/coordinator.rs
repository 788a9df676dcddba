//! `dmtcp_coordinator`: says what jobs begin with, and is done; in the foreground it takes orders until it is told to go.

use super::command;
use super::joined;
use super::options::{Asked, Order};
use crate::job::coordinator::{self, Name, State};
use crate::job::identity::Identity;
use crate::job::process::ProcessId;
use crate::job::terminal::say;
use crate::sys::ids::FsIds;
use crate::sys::inotify;
use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Makes a coordinator, and is one where it is not to be a daemon.
///
/// # Errors
/// There is one already, or its state cannot be written.
pub fn run(asked: &Asked) -> anyhow::Result<()> {
    if let Some(word) = asked.rest.first() {
        bail!("{}: dmtcp_coordinator takes options, and a port at the end", word.to_string_lossy());
    }
    let caller = Identity::of_caller(None)?.fs_ids();
    let (name, state) = joined::joined(asked, &caller)?;
    // What nobody goes by any more has had its day.
    let is_in_use = state.is_some_and(|state| state.process.is_some());
    if is_in_use || !coordinator::jobs(name, &caller).is_empty() {
        let port = name.port;
        bail!(
            "there is a coordinator at port {port} already: end it (dmtcp_command -p {port} -q), or name another one (-p 0: \
             any)"
        );
    }
    let own =
        (!asked.is_daemon).then(ProcessId::current).transpose().context("cannot find out who this is")?;
    let state = State {
        process: own,
        interval_s: asked.interval,
        exit_after_ckpt: asked.exit_after_checkpoint,
        exit_on_last: asked.exit_on_last,
        ..State::default()
    };
    let place = coordinator::store(name, &state, &caller)?;
    joined::write_port(asked, name, &caller)?;
    if !asked.is_quiet {
        // Nobody listening is no reason to fail.
        let _ = io::stderr().write_all(banner(name, asked).as_bytes());
    }
    match asked.is_daemon {
        true => Ok(()),
        false => serve(name, &place, &caller),
    }
}

/// What scripts may look for.
fn banner(name: Name, asked: &Asked) -> String {
    let interval = match asked.interval {
        Some(seconds) if seconds > 0 => seconds.to_string(),
        _ => "disabled (checkpoint manually instead)".to_owned(),
    };
    format!(
        "dmtcp_coordinator starting...\n    Host: localhost\n    Port: {}\n    Checkpoint Interval: {interval}\n    \
         Exit on last client: {}\n",
        name.port,
        u8::from(asked.exit_on_last)
    )
}

/// Takes orders until somebody has removed the state.
fn serve(name: Name, place: &Path, caller: &FsIds) -> anyhow::Result<()> {
    let changes = inotify::create(libc::IN_NONBLOCK)?;
    {
        let _as = caller.assume()?;
        inotify::add(&changes, place, libc::IN_DELETE | libc::IN_MOVED_TO)
            .context("cannot watch the state")?;
    }
    let mut changes = File::from(changes);
    let mut input = input()?;
    while coordinator::load(name, caller).is_some() {
        let is_typed = wait(&changes, input.as_ref())?;
        let mut block = [0; 4096];
        // Whatever has changed, the state is looked at.
        let _ = changes.read(&mut block);
        if !is_typed {
            continue;
        }
        match input.as_mut().map_or(Ok(0), |input| input.read(&mut block)) {
            Ok(count) if count > 0 => take(block.get(..count).unwrap_or_default(), name, caller),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nobody types any more.
            _ => input = None,
        }
    }
    Ok(())
}

/// Returns when something has changed, or was typed; whether it is the latter.
fn wait(changes: &File, input: Option<&File>) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
    fds.extend(input.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false)))
}

/// Standard input, where orders come from: a pipe, or a terminal that this process has the use of.
fn input() -> anyhow::Result<Option<File>> {
    let input: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let is_terminal = isatty(&input).unwrap_or(false);
    let has_terminal = is_terminal && tcgetpgrp(&input).is_ok_and(|group| group == getpgrp());
    let input = File::from(input);
    let is_pipe = input.metadata().is_ok_and(|found| found.file_type().is_fifo());
    Ok((has_terminal || is_pipe).then_some(input))
}

/// One order a letter; what is none is passed over.
fn take(typed: &[u8], name: Name, caller: &FsIds) {
    for key in typed {
        if let Some(order) = order_of(*key)
            && let Err(error) = command::give(order, name, caller)
        {
            say(&format!("{error:#}"));
        }
    }
}

/// As DMTCP's coordinator has them.
fn order_of(key: u8) -> Option<Order> {
    match key {
        b's' | b'i' => Some(Order::Status),
        b'l' => Some(Order::List),
        b'c' => Some(Order::Checkpoint),
        b'k' => Some(Order::Kill),
        b'q' => Some(Order::Quit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banner_has_the_port_where_scripts_look_for_it() {
        let name = Name { port: 20_123, slurm_job: None };
        let text = banner(name, &Asked { interval: Some(30), exit_on_last: true, ..Asked::default() });
        for line in ["    Port: 20123", "    Checkpoint Interval: 30", "    Exit on last client: 1"] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        assert!(banner(name, &Asked::default()).contains("disabled (checkpoint manually instead)"));
    }

    #[test]
    fn keys_are_orders_and_line_ends_are_none() {
        let typed = [b's', b'c', b'\n', b'q'].map(order_of);
        assert_eq!(typed, [Some(Order::Status), Some(Order::Checkpoint), None, Some(Order::Quit)]);
    }
}

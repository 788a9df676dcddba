//! A daemon that returns to whoever has started it once it listens: a prolog does not wait for its end.

use super::Options;
use crate::sys::pidfd;
use crate::sys::spawn::{self, Detached, Ready};
use anyhow::Context;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Word of the daemon to who has started it.
pub struct Running {
    ready: Option<Ready>,
    pidfile: Option<PathBuf>,
    has_log: bool,
}

/// Goes to the background, if that is wanted; then only the background returns.
///
/// # Errors
/// The log cannot be written.
pub fn begin(options: &Options) -> anyhow::Result<Running> {
    let ready = match &options.pidfile {
        None => None,
        Some(_) => {
            spawn::close_inherited()?;
            match spawn::detach().context("cannot go to the background")? {
                // It has said why it has ended, if it has.
                Detached::Parent(ended) => std::process::exit(ended.exit_status().into()),
                Detached::Child(ready) => Some(ready),
            }
        }
    };
    if let Some(path) = &options.log {
        let log =
            File::options().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path);
        let log = log.with_context(|| format!("{}: cannot write the log", path.display()))?;
        pidfd::duplicate_to_standard(&OwnedFd::from(log), 2)?;
    }
    Ok(Running { ready, pidfile: options.pidfile.clone(), has_log: options.log.is_some() })
}

impl Running {
    /// It listens.
    ///
    /// # Errors
    /// The process id cannot be written.
    pub fn told(&mut self) -> std::io::Result<()> {
        if let Some(path) = &self.pidfile {
            // Beside it, so that nobody reads an empty one, and takes this for a daemon that is gone.
            let mut beside = path.clone().into_os_string();
            beside.push(".new");
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
            let mut file = options.open(&beside)?;
            writeln!(file, "{}", std::process::id())?;
            fs::rename(&beside, path)?;
        }
        if let Some(ready) = self.ready.take() {
            let nothing = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
            let streams = if self.has_log { 0..2 } else { 0..3 };
            for stream in streams {
                pidfd::duplicate_to_standard(&nothing, stream)?;
            }
            ready.tell();
        }
        Ok(())
    }

    /// Nobody is to send it a signal any more.
    pub fn over(&self) {
        if let Some(path) = &self.pidfile {
            let _ = fs::remove_file(path);
        }
    }
}

//! Word of the daemon to whoever has started it, once it listens: it returns (a prolog does not wait for its end), and tells systemd.

use super::Options;
use crate::sys::pidfd;
use crate::sys::spawn::{self, Detached, Ready};
use anyhow::Context;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

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
        open_log(path).with_context(|| format!("{}: cannot write the log", path.display()))?;
    }
    Ok(Running { ready, pidfile: options.pidfile.clone(), has_log: options.log.is_some() })
}

/// Opens the log at `path`, where there may be another file by now (logrotate(8)), in the place of standard error.
///
/// # Errors
/// It cannot be written; what was open stays.
pub fn open_log(path: &Path) -> io::Result<()> {
    let log =
        File::options().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    pidfd::duplicate_to_standard(&OwnedFd::from(log), 2)
}

/// Tells systemd that it serves, where that wants to know (sd_notify(3)). It is never waited for.
fn notify() -> io::Result<()> {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&place)?,
    };
    socket.send_to_addr(b"READY=1", &address).map(drop)
}

impl Running {
    /// It listens.
    ///
    /// # Errors
    /// The process id cannot be written.
    pub fn told(&mut self) -> io::Result<()> {
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
        if let Err(error) = notify() {
            log::warn!("systemd is not told that it serves: {error}");
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

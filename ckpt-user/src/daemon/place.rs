//! Where a daemon listens, and where a client looks for one.

use crate::sys::{packet, socket};
use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen};
use nix::unistd::Uid;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The node's.
pub const NODE: &str = "/run/ckptbpf/daemon.sock";
/// Those of Slurm jobs.
const OF_JOBS: &str = "/run/ckptbpf/slurm";
/// Names another; empty: none.
pub const VARIABLE: &str = "CKPTBPF_SOCKET";

/// Where a client looks for its daemon, first to last.
pub fn candidates(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    match variable(VARIABLE) {
        Some(empty) if empty.is_empty() => return Vec::new(),
        Some(named) => return vec![named.into()],
        None => {}
    }
    let of_job = variable("SLURM_JOB_ID").zip(variable("SLURMD_NODENAME")).map(|(job, node)| {
        let mut name = node;
        name.push("-");
        name.push(job);
        name.push(".sock");
        Path::new(OF_JOBS).join(name)
    });
    of_job.into_iter().chain([NODE.into()]).collect()
}

/// The socket of a daemon that listens.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    // Never read: one daemon a socket.
    _lock: Flock<File>,
}

impl Place {
    /// Listens at `path`, else at [`NODE`]: for everybody, or for `uid` alone. What a daemon that is gone has left is taken
    /// away.
    ///
    /// # Errors
    /// A daemon listens there, or something else is in the place of the socket.
    pub fn made(path: Option<&Path>, uid: Option<u32>) -> anyhow::Result<(Self, OwnedFd)> {
        let path = path.unwrap_or(Path::new(NODE)).to_owned();
        let shown = path.display();
        if let Some(above) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(above);
            made.with_context(|| format!("cannot make {}", above.display()))?;
        }
        let mut lock = path.clone().into_os_string();
        lock.push(".lock");
        let lock = locked(&PathBuf::from(lock)).with_context(|| format!("cannot listen at {shown}"))?;
        let lock = lock.with_context(|| format!("a daemon listens at {shown} already"))?;
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path)?,
            Ok(_) => bail!("{shown} is there, and is no socket: remove it, or name another place (--socket)"),
            Err(_) => {}
        }
        let listener = listen_at(&path, uid).with_context(|| format!("cannot listen at {shown}"))?;
        Ok((Self { path, _lock: lock }, listener))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Nobody finds it any more.
    pub fn leave(&self) {
        let mut lock = self.path.clone().into_os_string();
        lock.push(".lock");
        let _ = fs::remove_file(&self.path).and_then(|()| fs::remove_file(lock));
    }
}

/// The lock of whoever listens there; none where somebody has it, and not just to take away what a dead one has left, as an epilog
/// does. One that is left takes its file away.
fn locked(path: &Path) -> io::Result<Option<Flock<File>>> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    loop {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if begun.elapsed() > PATIENCE => return Ok(None),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err((_, errno)) => return Err(errno.into()),
            Ok(lock) => lock,
        };
        let is_there = fs::metadata(path).is_ok_and(|found| {
            lock.metadata().is_ok_and(|ours| (found.dev(), found.ino()) == (ours.dev(), ours.ino()))
        });
        if is_there {
            return Ok(Some(lock));
        }
    }
}

fn listen_at(path: &Path, uid: Option<u32>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Nobody can connect before it listens.
    match uid {
        Some(uid) => {
            nix::unistd::chown(path, Some(Uid::from_raw(uid)), None)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        None => fs::set_permissions(path, Permissions::from_mode(0o666))?,
    }
    // A worker is told of the peer by the kernel where it refuses descriptors, too.
    packet::take_descriptors(&socket, false);
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket)
}

/// A connection to whoever listens at `path`.
///
/// # Errors
/// NotFound or ConnectionRefused: nobody does.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    /// How long a daemon that has many waiting may take.
    const PATIENCE: Duration = Duration::from_secs(5);
    socket::connect_within(path, libc::SOCK_SEQPACKET, PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_looks_where_it_is_told_or_at_its_job_s_or_at_the_node_s() {
        let look = |set: &[(&str, &str)]| {
            candidates(|name| set.iter().find(|one| one.0 == name).map(|one| one.1.into()))
        };
        let job = [("SLURM_JOB_ID", "41"), ("SLURMD_NODENAME", "n1")];
        assert_eq!(look(&[]), [Path::new(NODE)]);
        assert_eq!(look(&job), [Path::new("/run/ckptbpf/slurm/n1-41.sock"), Path::new(NODE)]);
        assert_eq!(look(&[job[0], job[1], (VARIABLE, "/tmp/s")]), [Path::new("/tmp/s")]);
        assert!(look(&[job[0], job[1], (VARIABLE, "")]).is_empty());
    }

    #[test]
    fn there_is_one_daemon_a_socket_and_one_that_is_gone_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/d.sock");
        let (place, listener) = Place::made(Some(&path), None).unwrap();
        assert!(connect(&path).is_ok());
        let error = Place::made(Some(&path), None).unwrap_err();
        assert!(error.to_string().contains("already"), "{error}");
        drop((place, listener));
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (place, _listener) = Place::made(Some(&path), Some(4242)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        place.leave();
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "").unwrap();
        drop(place);
        assert!(Place::made(Some(&path), None).unwrap_err().to_string().contains("no socket"));
    }
}

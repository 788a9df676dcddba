//! Files and directories of /proc, its global ones too. They are opened again by the first process that has them, with
//! its own rights and when all processes are there: what such a file shows is decided by who has opened it.

use super::reach::leads_to;
use super::{Object, Seen};
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use crate::task::proc::ProcDir;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::Pid;
use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ProcRecord {
    /// From / on. /proc/self is the process that opened it.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// Whether a description is of a file in /proc.
pub fn is_one(seen: &Seen, fd: &OwnedFd) -> bool {
    seen.target.starts_with("/proc") && fstatfs(fd).is_ok_and(|s| s.filesystem_type() == PROC_SUPER_MAGIC)
}

/// `members` are the processes of the program, the ended ones too.
///
/// # Errors
/// The reason why a restart could not open it again.
pub fn capture(seen: &Seen, metadata: &Metadata, members: &[Pid]) -> Result<Object, String> {
    let path = &seen.target;
    let mut below = path.components().skip(2).map(Component::as_os_str);
    let first = below.next().unwrap_or_default();
    if let Some(id) = first.to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw) {
        let is_thread = |&of: &Pid| ProcDir::thread(of, id).path("stat").exists();
        if !members.contains(&id) && !members.iter().any(is_thread) {
            return Err(format!("it is of process {id}, which is not of the program"));
        }
    }
    let writes = seen.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
    if first == "pressure" && writes {
        return Err("a watch for pressure (PSI) cannot be saved yet".to_owned());
    }
    if !leads_to(path, metadata, seen.pid)? {
        return Err("it has gone from /proc since it was opened".to_owned());
    }
    Ok(Object::Proc(ProcRecord { path: path.as_os_str().as_bytes().to_vec() }))
}

/// Has the process open it; its number there.
///
/// # Errors
/// InvalidData for a path outside of /proc.
pub fn rebuild(record: &ProcRecord, flags: u32, position: u64, remote: &mut Remote) -> io::Result<u64> {
    const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
    const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;
    let path = super::path_of(&record.path);
    let is_plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.starts_with("/proc") || !is_plain {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a file of /proc has another path"));
    }
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let flags = flags as i32 & !ONCE;
    let name = remote.string(&record.path)?;
    // Whatever an image leads to, opening it does not wait.
    let open = (flags | libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let fd = remote.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, name, open, 0]).map_err(named)?;
    if flags & libc::O_PATH == 0 {
        let set = (flags & SETTABLE) as u64;
        let status = Call::new(libc::SYS_fcntl, &[fd, libc::F_SETFL as u64, set]);
        let seek = Call::new(libc::SYS_lseek, &[fd, position, libc::SEEK_SET as u64]);
        let calls = if position == 0 { vec![status] } else { vec![status, seek] };
        remote.run_all(&calls).map_err(named)?;
    }
    Ok(fd)
}

/// The path, where messages name it.
pub fn path(record: &ProcRecord) -> &Path {
    super::path_of(&record.path)
}

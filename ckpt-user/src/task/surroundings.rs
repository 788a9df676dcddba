//! Working directory, root directory and umask.

use super::proc::{ProcDir, Status};
use crate::refusal::{Reading, Refusal};
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;
use std::os::unix::ffi::OsStringExt;

/// Where relative paths begin and which bits new files lose.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Surroundings {
    #[prost(bytes = "vec", tag = "1")]
    pub directory: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub umask: u32,
}

/// # Errors
/// Named: a root directory of its own, a working directory that was removed.
pub fn capture(pid: Pid, status: &Status) -> Result<Surroundings, Refusal> {
    let dir = ProcDir::process(pid);
    let root = dir.link("root").reading(pid, "root")?;
    let own_root = std::fs::read_link("/proc/self/root").reading(pid, "root")?;
    if root != own_root {
        return Err(Refusal::unsupported(
            pid,
            "has changed its root directory",
            "chroot(2) is not supported",
        ));
    }
    let directory = dir.link("cwd").reading(pid, "cwd")?.into_os_string().into_vec();
    if directory.ends_with(b" (deleted)") {
        return Err(Refusal::unsupported(
            pid,
            format!("stands in {}", String::from_utf8_lossy(&directory)),
            "its working directory has been removed",
        ));
    }
    Ok(Surroundings { directory, umask: status.octal("Umask").reading(pid, "status")? as u32 })
}

pub fn rebuild(wanted: &Surroundings, remote: &mut Remote) -> io::Result<()> {
    let path = remote.string(&wanted.directory)?;
    remote.call(libc::SYS_chdir, &[path]).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("working directory {}: {e}", String::from_utf8_lossy(&wanted.directory)),
        )
    })?;
    remote.call(libc::SYS_umask, &[u64::from(wanted.umask)]).map(drop)
}

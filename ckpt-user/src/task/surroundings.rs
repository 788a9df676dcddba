//! Working directory, root directory and umask.

use super::proc::{ProcDir, Status};
use crate::object::{Description, Object};
use crate::record::Process;
use crate::refusal::{Reading, Refusal};
use crate::sys::ids::FsIds;
use crate::sys::remote::Remote;
use nix::unistd::{Pid, geteuid};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where relative paths begin and which bits new files lose.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Surroundings {
    #[prost(bytes = "vec", tag = "1")]
    pub directory: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub umask: u32,
    /// The root directory by its path from ckptbpf's own; empty where that is its own, too.
    #[prost(bytes = "vec", tag = "3")]
    pub root: Vec<u8>,
}

/// # Errors
/// Named: a root or working directory that was removed.
pub fn capture(pid: Pid, status: &Status) -> Result<Surroundings, Refusal> {
    let dir = ProcDir::process(pid);
    let root = root(&dir).reading(pid, "root")?.ok_or_else(|| {
        let what = "has a root directory of its own (chroot(2))";
        Refusal::unsupported(pid, what, "it has been removed, or is not below that of ckptbpf")
    })?;
    let directory = dir.link("cwd").reading(pid, "cwd")?.into_os_string().into_vec();
    if directory.ends_with(b" (deleted)") {
        return Err(Refusal::unsupported(
            pid,
            format!("stands in {}", String::from_utf8_lossy(&directory)),
            "its working directory has been removed",
        ));
    }
    let umask = status.octal("Umask").reading(pid, "status")? as u32;
    Ok(Surroundings { directory, umask, root: root.into_os_string().into_vec() })
}

/// The path of another root directory than ours, an empty one of our own; none where a path does not lead there.
fn root(dir: &ProcDir) -> io::Result<Option<PathBuf>> {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let (there, path) = (identity(&dir.path("root"))?, dir.link("root")?);
    // A mount of our own root directory at another place is another one.
    if path == std::fs::read_link("/proc/self/root")? && there == identity(Path::new("/proc/self/root"))? {
        return Ok(Some(PathBuf::new()));
    }
    Ok(identity(&path).is_ok_and(|found| path.is_absolute() && found == there).then_some(path))
}

/// # Errors
/// Names a process with another root directory that would have to open a file of /proc: it would find another one, or none.
pub fn check(processes: &[Process], descriptions: &[Description]) -> Result<(), Refusal> {
    for (index, _) in
        descriptions.iter().enumerate().filter(|(_, d)| matches!(d.object, Some(Object::Proc(_))))
    {
        let has = |p: &&Process| p.descriptors.iter().any(|d| d.description as usize == index);
        let first = processes.iter().find(has);
        let around = first.and_then(|process| process.surroundings.as_ref());
        if let Some(process) = first.filter(|_| around.is_some_and(|around| !around.root.is_empty())) {
            let what = "has a root directory of its own (chroot(2)), and a file of /proc open";
            return Err(Refusal::unsupported(Pid::from_raw(process.pid), what, "both cannot be saved yet"));
        }
    }
    Ok(())
}

/// `owner` is whose image it is: nobody comes by it to where he may not go.
pub fn rebuild(wanted: &Surroundings, owner: &FsIds, remote: &mut Remote) -> io::Result<()> {
    let as_owner = owner.uid != 0 && geteuid().is_root();
    if as_owner {
        let groups: Vec<u8> = owner.groups.iter().flat_map(|group| group.to_le_bytes()).collect();
        let at = remote.data(&groups)?;
        // Its own ids are made later.
        remote.call(libc::SYS_setgroups, &[owner.groups.len() as u64, at])?;
        for (call, id) in [(libc::SYS_setfsgid, owner.gid), (libc::SYS_setfsuid, owner.uid)] {
            remote.call(call, &[u64::from(id)])?;
        }
    }
    enter(libc::SYS_chdir, "working", &wanted.directory, remote)?;
    if as_owner {
        for call in [libc::SYS_setfsuid, libc::SYS_setfsgid] {
            remote.call(call, &[0])?;
        }
    }
    if !wanted.root.is_empty() {
        enter(libc::SYS_chroot, "root", &wanted.root, remote)?;
    }
    remote.call(libc::SYS_umask, &[u64::from(wanted.umask)]).map(drop)
}

fn enter(call: i64, what: &str, directory: &[u8], remote: &mut Remote) -> io::Result<()> {
    let path = remote.string(directory)?;
    let shown = || format!("{what} directory {}", String::from_utf8_lossy(directory));
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", shown()));
    remote.call(call, &[path]).map(drop).map_err(named)
}

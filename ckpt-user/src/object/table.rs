//! Descriptor tables: which numbers of which process refer to which description.

use super::file::{DeviceRecord, FileRecord};
use super::{Description, Object, Outside, pipe};
use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One descriptor of one process.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Descriptor {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// Index into the image's descriptions.
    #[prost(uint32, tag = "2")]
    pub description: u32,
    #[prost(bool, tag = "3")]
    pub close_on_exec: bool,
}

/// What /proc shows of one descriptor.
#[derive(Debug)]
struct Seen {
    pid: Pid,
    number: i32,
    target: PathBuf,
    position: u64,
    flags: u32,
}

/// Captures the tables of all processes of a stopped tree.
///
/// `standards` are descriptors of `standards_of` that count as standard streams 0, 1, 2.
///
/// # Errors
/// Names the first descriptor that a restart could not rebuild.
pub fn capture(
    processes: &[Pid],
    standards_of: Pid,
) -> Result<(Vec<Vec<Descriptor>>, Vec<Description>), Refusal> {
    let mut tables = Vec::new();
    let mut found: Vec<Seen> = Vec::new();
    let mut groups: HashMap<(PathBuf, u64, u32), Vec<usize>> = HashMap::new();
    for &pid in processes {
        let mut table = Vec::new();
        for number in ProcDir::process(pid).numbers("fd").reading(pid, "fd")? {
            let (seen, close_on_exec) = look(pid, number)?;
            let group = groups.entry((seen.target.clone(), seen.position, seen.flags)).or_default();
            let mut known = None;
            for &index in &*group {
                let other: &Seen = &found[index];
                let order = pidfd::compare(pid, other.pid, pidfd::Kind::File, number, other.number)
                    .reading(pid, "kcmp")?;
                if order == Ordering::Equal {
                    known = Some(index);
                    break;
                }
            }
            let index = known.unwrap_or_else(|| {
                found.push(seen);
                group.push(found.len() - 1);
                found.len() - 1
            });
            table.push(Descriptor { number: number as u32, description: index as u32, close_on_exec });
        }
        tables.push(table);
    }
    let ends: Vec<(OwnedFd, &Seen)> = found
        .iter()
        .map(|seen| {
            let process = pidfd::open(seen.pid).reading(seen.pid, "pidfd")?;
            Ok((pidfd::get_fd(process.as_fd(), seen.number).reading(seen.pid, "descriptor")?, seen))
        })
        .collect::<Result<_, Refusal>>()?;
    let descriptions = ends
        .iter()
        .map(|(fd, seen)| describe(fd, seen, &ends, standards_of))
        .collect::<Result<_, Refusal>>()?;
    Ok((tables, descriptions))
}

fn look(pid: Pid, number: i32) -> Result<(Seen, bool), Refusal> {
    let dir = ProcDir::process(pid);
    let target = dir.link(&format!("fd/{number}")).reading(pid, "fd")?;
    let info = dir.text(&format!("fdinfo/{number}")).reading(pid, "fdinfo")?;
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let position = field("pos:").and_then(|v| v.parse().ok()).unwrap_or(0);
    let flags = field("flags:").and_then(|v| u32::from_str_radix(v, 8).ok()).unwrap_or(0);
    let cloexec = libc::O_CLOEXEC as u32;
    Ok((Seen { pid, number, target, position, flags: flags & !cloexec }, flags & cloexec != 0))
}

/// Which of the launcher's standard streams this is, if any.
fn standard(seen: &Seen, standards_of: Pid) -> Option<u32> {
    (0..3)
        .find(|&stream| {
            pidfd::compare(standards_of, seen.pid, pidfd::Kind::File, stream, seen.number)
                .is_ok_and(|order| order == Ordering::Equal)
        })
        .map(|stream| stream as u32)
}

fn describe(
    fd: &OwnedFd,
    seen: &Seen,
    all: &[(OwnedFd, &Seen)],
    standards_of: Pid,
) -> Result<Description, Refusal> {
    let name = || format!("descriptor {} ({})", seen.number, seen.target.display());
    let refuse = |reason: &str| {
        let reason = format!("{reason}{}", inherited(seen, standards_of));
        Refusal::unsupported(seen.pid, format!("has {}", name()), reason)
    };
    let metadata = File::from(fd.try_clone().reading(seen.pid, "fd")?).metadata().reading(seen.pid, "fd")?;
    let kind = metadata.file_type();
    let standard = standard(seen, standards_of);
    let deleted = seen.target.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
    let object = if (kind.is_file() || kind.is_dir()) && seen.target.is_absolute() {
        if deleted && metadata.nlink() == 0 {
            return Err(refuse("the file has been deleted; deleted files cannot be saved yet"));
        }
        if !same_by_path(&seen.target, &metadata) {
            return Err(refuse("the file has been renamed since it was opened"));
        }
        Object::File(FileRecord::of(&seen.target, &metadata))
    } else if let Some(device) =
        kind.is_char_device().then(|| DeviceRecord::of(&seen.target, &metadata)).flatten()
    {
        Object::Device(device)
    } else if standard.is_some() {
        Object::Outside(Outside { name: seen.target.display().to_string() })
    } else if kind.is_fifo() && seen.target.as_os_str().as_encoded_bytes().starts_with(b"pipe:[") {
        Object::Pipe(describe_pipe(fd, seen, &metadata, all).map_err(|reason| refuse(&reason))?)
    } else {
        return Err(refuse("this kind of descriptor cannot be saved yet"));
    };
    Ok(Description { flags: seen.flags, position: seen.position, standard, object: Some(object) })
}

/// What to do about a descriptor that ckptbpf has too: it came from whoever started ckptbpf.
fn inherited(seen: &Seen, standards_of: Pid) -> String {
    let number = seen.number;
    let ours = pidfd::compare(Pid::this(), seen.pid, pidfd::Kind::File, number, number);
    if standards_of != Pid::this() || !ours.is_ok_and(|order| order == Ordering::Equal) {
        return String::new();
    }
    format!(
        "; it was inherited from whoever started ckptbpf (a build tool, an editor, a script): start ckptbpf \
         with {number}>&- behind it, which closes it"
    )
}

fn same_by_path(path: &Path, metadata: &std::fs::Metadata) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.dev() == metadata.dev() && m.ino() == metadata.ino())
}

fn describe_pipe(
    fd: &OwnedFd,
    seen: &Seen,
    metadata: &std::fs::Metadata,
    all: &[(OwnedFd, &Seen)],
) -> Result<pipe::PipeRecord, String> {
    let writes = |s: &Seen| s.flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
    let mut same = all.iter().filter(|(_, other)| other.target == seen.target);
    let reader = same.clone().find(|(_, other)| !writes(other)).map(|(fd, _)| fd);
    let has_writer = same.any(|(_, other)| writes(other));
    let hung_up = |fd: &OwnedFd| {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|_| {
            fds[0].revents().is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
        })
    };
    // With one end only, the other must be closed everywhere, else somebody outside holds it.
    if (reader.is_none() || !has_writer) && !hung_up(fd) {
        return Err("its other end is held by a process outside the program".to_owned());
    }
    pipe::capture(metadata.ino(), reader, fd).map_err(|e| e.to_string())
}

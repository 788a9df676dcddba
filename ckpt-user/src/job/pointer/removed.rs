//! Who removes a pointer has removed the checkpoints: they are taken away when the next program is launched beside them, and when
//! the one that was launched there has ended.
//!
//! Never of a job that may still run, and never where the pointer may be somewhere else. One that was moved is known by its other
//! name in the job's directory, of which the file has as many links as there are names (link(2)); that it was copied first, as by
//! mv(1) to another file system, by its times ([`keep`]). What cannot be known is said, and stays.

use super::{Names, OWN, keep};
use crate::job::directory::{DirectoryError, JobDir};
use crate::job::process::ProcessId;
use crate::job::record::{Here, JobRecord, Standing, standing};
use crate::sys::ids::FsIds;
use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What goes last: what tells whose directory it is, and what keeps others out of it.
const LAST: [&str; 2] = ["job.json", "lock"];
/// What a job has that has come to no checkpoint, and nobody would miss.
const OF_ANY: [&str; 4] = ["events.jsonl", "events.jsonl.1", "remade.json", OWN];

const NO_LINKS: &str = "on its file system nobody can tell whether it was removed or moved";
const WAS_READ: &str = "may be elsewhere, as it was read since the last checkpoint, or could not be written";
const A_COPY: &str = "its directory is a copy, of which nobody can tell whether it was removed or moved";

/// What has become of a pointer.
enum Fate {
    /// It is beside its directory, or has another name.
    Kept,
    /// By what there is of it in the directory: this file.
    Removed(File),
    /// It may be somewhere else.
    Unknown(&'static str),
}

/// Takes away what is left in `above`: what there is to say, a line each.
pub fn sweep(above: &Path, caller: &FsIds) -> Vec<String> {
    let entries = {
        let Ok(_as) = caller.assume() else { return Vec::new() };
        fs::read_dir(above).into_iter().flatten().flatten().collect::<Vec<_>>()
    };
    let mut said = Vec::new();
    for entry in entries {
        let path = entry.path();
        if Names::of_dir(&path).is_none() || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match take_away(&path, caller) {
            Ok(line) => said.extend(line),
            // Somebody else's, say: then it is not in our way either.
            Err(error) => log::debug!("{} stays: {error:#}", path.display()),
        }
    }
    said
}

/// Takes one job's directory away, if its pointer was removed or it holds no checkpoint. What there is to say of it.
///
/// # Errors
/// It cannot be looked at, or not be removed.
pub fn take_away(path: &Path, caller: &FsIds) -> anyhow::Result<Option<String>> {
    let Some(names) = Names::of_dir(path) else { return Ok(None) };
    let dir = JobDir::open(path, caller)?;
    if !is_own(&dir, path, caller)? || marked(&dir)?.is_none() {
        return Ok(None);
    }
    let _as = dir.assume()?;
    let pointer = path.with_file_name(names.pointer());
    let is_empty = || -> anyhow::Result<bool> { Ok(dir.generations()?.is_empty()) };
    if !is_empty()? && matches!(fate(&dir, &pointer)?, Fate::Kept) {
        return Ok(None);
    }
    // Held until it is gone: nobody begins to write there meanwhile.
    let lock = dir.open_file("lock", OFlag::O_RDWR)?;
    if lock.try_lock().is_err() {
        return Ok(None);
    }
    let Some(record) = marked(&dir)? else { return Ok(None) };
    let may_run = may_run(&record);
    if is_empty()? {
        if may_run.is_none() && !holds_more(&dir)? {
            remove(&dir, path, lock)?;
        }
        return Ok(None);
    }
    let (shown, stays) = (pointer.display(), path.display());
    let unknown = |why: &str| {
        format!("{shown} is not there, but {why}: {stays} stays; remove it if nobody wants its checkpoints")
    };
    let line = match (fate(&dir, &pointer)?, may_run) {
        (Fate::Kept, _) => return Ok(None),
        (Fate::Unknown(why), _) => unknown(why),
        (Fate::Removed(_), Some(why)) => {
            format!("{shown} was removed, but {why}: {stays} stays; remove it if the job is over")
        }
        // Last: to read it may leave a trace.
        (Fate::Removed(own), None) if !keep::is_first(&own)? => unknown(A_COPY),
        (Fate::Removed(own), None) => {
            drop(own);
            remove(&dir, path, lock)?;
            format!("{shown} was removed: so are the checkpoints that it stood for")
        }
    };
    Ok(Some(line))
}

/// The directory's record, if its job was started by a name of DMTCP's.
fn marked(dir: &JobDir) -> anyhow::Result<Option<JobRecord>> {
    Ok(dir.read_record()?.filter(|record| record.options.dmtcp.is_some()))
}

/// Whether the directory is the caller's, and what is at `path`, and not what a link there leads to.
fn is_own(dir: &JobDir, path: &Path, caller: &FsIds) -> anyhow::Result<bool> {
    let stat = fstat(dir)?;
    let _as = caller.assume()?;
    let at = fs::symlink_metadata(path)?;
    Ok(stat.st_uid == caller.uid && (at.dev(), at.ino()) == (stat.st_dev, stat.st_ino))
}

/// Looks at the pointer's place, and at its other name in the job's directory, and reads nothing.
fn fate(dir: &JobDir, pointer: &Path) -> anyhow::Result<Fate> {
    match fs::symlink_metadata(pointer) {
        Ok(_) => return Ok(Fate::Kept),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // It may be there.
        Err(error) => return Err(error).context("cannot look for its pointer"),
    }
    let own = match dir.open_file(OWN, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME) {
        Ok(own) => own,
        Err(DirectoryError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Ok(Fate::Unknown(NO_LINKS));
        }
        Err(error) => return Err(error.into()),
    };
    let found = own.metadata()?;
    Ok(match found.nlink() {
        2.. => Fate::Kept,
        _ if keep::is_settled(&found) => Fate::Removed(own),
        _ => Fate::Unknown(WAS_READ),
    })
}

/// Why the job may run, though nobody holds its lock.
fn may_run(record: &JobRecord) -> Option<String> {
    let here = Here::current();
    match standing(record, &here, ProcessId::runs) {
        Standing::Over | Standing::Rebooted => {
            let left = record.restarted.iter().find(|one| record.here == here && one.runs());
            left.map(|one| format!("process {} of its job runs", one.pid))
        }
        Standing::Runs(pid) => Some(format!("its job still runs as pid {pid}")),
        Standing::Elsewhere => Some(format!("its job was running on host {}", record.here.host)),
    }
}

fn entries(dir: &JobDir) -> io::Result<Vec<DirEntry>> {
    fs::read_dir(dir.proc_path())?.collect()
}

/// Whether there is more in a directory without checkpoints than any job leaves: what a rollback has cut off, say.
fn holds_more(dir: &JobDir) -> io::Result<bool> {
    let is_of_any = |entry: &DirEntry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let mut known = LAST.iter().chain(&OF_ANY);
        name.ends_with(b".tmp") || known.any(|one| name == one.as_bytes())
    };
    Ok(!entries(dir)?.iter().all(is_of_any))
}

/// Removes a directory: by its descriptor, and so that what an interruption leaves is still a job's.
fn remove(dir: &JobDir, path: &Path, lock: File) -> anyhow::Result<()> {
    for entry in entries(dir).context("cannot list it")? {
        let name = entry.file_name();
        if LAST.iter().any(|last| name == *last) {
            continue;
        }
        let inside = dir.proc_path().join(&name);
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(inside),
            false => fs::remove_file(inside),
        };
        removed.with_context(|| format!("cannot remove {} in it", name.display()))?;
    }
    for name in LAST {
        dir.remove(name)?;
    }
    // On NFS, what is open has a name until it is closed.
    drop(lock);
    fs::remove_dir(path).context("cannot remove it")
}

#[cfg(test)]
#[path = "removed_tests.rs"]
mod tests;

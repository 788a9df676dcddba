//! The pointer of a job that has a new checkpoint.
//!
//! ```text
//! DIR/pointer: written (temporary, fsync, rename), where it does not lead here ─▶ link ─▶ rename beside DIR ─▶ touched
//! ```
//! Where it goes is where the directory is now, by its descriptor, whatever has been moved meanwhile.
//!
//! `DIR/pointer` has to tell later whether the other name was removed ([`super::removed`]). So it says which file it is: one that has
//! come here with a copy of the directory tells of nothing. And both its times are the same from when the other name is there until
//! somebody reads it, as who copies it does.

use super::{LIMIT, Names, OWN, Pointer, script};
use crate::job::directory::JobDir;
use crate::job::lease::Lease;
use crate::job::record::JobRecord;
use anyhow::Context;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, fsync, linkat, unlinkat};
use std::fs::{self, File, FileTimes, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

const TEMPORARY: &str = "pointer.tmp";

/// Right after a commit: makes the pointer of a job that was started by a name of DMTCP's, or touches it. That it cannot be
/// written is said, and costs no checkpoint.
pub fn keep(lease: &Lease) {
    let record = lease.record();
    if record.options.dmtcp.is_none() {
        return;
    }
    if let Err(error) = kept(lease.dir(), &record) {
        log::warn!(
            "{}: dmtcp_restart cannot be told of the checkpoint: {error:#}; ckptbpf restart goes on from that directory",
            lease.dir().path().display()
        );
    }
}

fn kept(dir: &JobDir, record: &JobRecord) -> anyhow::Result<()> {
    let _as = dir.assume()?;
    let at = fs::read_link(dir.proc_path()).context("cannot find out where the directory is")?;
    // A branch of the job in a directory that has another name has none.
    let Some(names) = Names::of_dir(&at) else { return Ok(()) };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let above = openat(dir, "..", flags, Mode::empty()).context("cannot open the directory above it")?;
    let script = script::text(&names, at.parent().unwrap_or(Path::new("/")));
    let pointer = Pointer {
        job: record.job.clone(),
        dir: Some(at),
        program: record.argv.first().cloned().unwrap_or_default(),
        host: record.here.host.clone(),
    };
    let text = pointer.text();
    show(dir, &above, &names, &text).with_context(|| format!("cannot write {}", names.pointer()))?;
    for name in [names.script().as_str(), script::NAME] {
        put(&above, name, &script).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// Puts the pointer beside the directory, unless it is there, and makes it as old as the checkpoint.
fn show(dir: &JobDir, above: &OwnedFd, names: &Names, text: &str) -> anyhow::Result<()> {
    let own = own(dir, text)?;
    let found = own.metadata()?;
    let name = names.pointer();
    let shown = fstatat(above, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
    if !shown.is_ok_and(|shown| (shown.st_dev, shown.st_ino) == (found.dev(), found.ino())) {
        let temporary = names.temporary();
        let linked = remove(above, &temporary)
            .and_then(|()| Ok(linkat(dir, OWN, above, temporary.as_str(), AtFlags::empty())?));
        if linked.is_err() {
            // A file system without links. By a name that is alone one could not tell whether the other was moved or removed.
            make(above, &temporary, text.as_bytes(), Mode::S_IRUSR | Mode::S_IWUSR)?;
            dir.remove(OWN)?;
        }
        renameat(above, temporary.as_str(), above, name.as_str())?;
        settle(&own);
        return Ok(fsync(above)?);
    }
    settle(&own);
    Ok(())
}

/// `DIR/pointer`. Of a new one nothing can be told before it is settled.
fn own(dir: &JobDir, text: &str) -> anyhow::Result<File> {
    // Not even for a moment it is to look as if somebody had read it.
    if let Ok(file) = dir.open_file(OWN, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME)
        && leads(&file, text)?
    {
        return Ok(file);
    }
    let mut file = dir.open_file(TEMPORARY, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
    file.write_all(numbered(text, file.metadata()?.ino()).as_bytes())?;
    let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH));
    file.sync_all()?;
    dir.rename(TEMPORARY, OWN)?;
    Ok(file)
}

/// Whether it leads where `text` does, and is no copy. What is there for people is worth no new file: where the old one has been
/// moved to, it would be known no more.
fn leads(own: &File, text: &str) -> io::Result<bool> {
    let found = content(own)?;
    let place = |text: &str| Pointer::parse(text.as_bytes()).map(|one| (one.job, one.dir));
    Ok(place(&found) == place(text) && is_numbered(&found, own.metadata()?.ino()))
}

/// With the number (inode) of the file that it is in.
fn numbered(text: &str, number: u64) -> String {
    format!("{text}inode={number}\n")
}

fn is_numbered(text: &str, number: u64) -> bool {
    text.lines().next_back() == Some(format!("inode={number}").as_str())
}

fn content(own: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    own.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a file system keeps no such times, its checkpoints stay when the pointer is removed.
fn settle(own: &File) {
    let now = SystemTime::now();
    let _ = own.set_times(FileTimes::new().set_accessed(now).set_modified(now));
}

/// Whether the other name was there, and nobody has read the file since.
pub(super) fn is_settled(own: &Metadata) -> bool {
    (own.atime(), own.atime_nsec()) == (own.mtime(), own.mtime_nsec())
}

/// Whether it is the file that it says it is, and no copy.
pub(super) fn is_first(own: &File) -> io::Result<bool> {
    Ok(is_numbered(&content(own)?, own.metadata()?.ino()))
}

/// Writes a script whole, unless it is there as it should be.
fn put(above: &OwnedFd, name: &str, text: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let found = openat(above, name, flags, Mode::empty()).map(File::from);
    if found.is_ok_and(|file| is_same(&file, text)) {
        return Ok(());
    }
    let temporary = format!(".{name}.tmp");
    remove(above, &temporary)?;
    make(above, &temporary, text, Mode::from_bits_truncate(0o755))?;
    renameat(above, temporary.as_str(), above, name)?;
    Ok(fsync(above)?)
}

/// Makes a file that is not there, in a directory where others may write.
fn make(above: &OwnedFd, name: &str, text: &[u8], mode: Mode) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(above, name, flags, mode)?);
    file.write_all(text)?;
    // Whatever the umask is.
    fchmod(&file, mode)?;
    file.sync_all()
}

fn remove(above: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(above, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a regular file holds `text` and nothing else.
fn is_same(file: &File, text: &[u8]) -> bool {
    let mut found = Vec::new();
    let most = text.len() as u64 + 1;
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    is_file && file.take(most).read_to_end(&mut found).is_ok() && found == text
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;

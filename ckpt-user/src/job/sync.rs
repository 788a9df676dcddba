//! The files that the program writes are on disk before the checkpoint that relies on them has its name.
//!
//! The program runs meanwhile, and may close one. Then it has no lock on it any more, and may run it: so it is not a duplicate
//! of the program's descriptor through which it is written out, which would hold on to both, but one of ours that only reads.

use crate::object::{Object, file::FileRecord};
use crate::record::{Image, Process};
use crate::sys::pidfd;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the program wrote to a file is not on the disk, and may never come there.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot write out what the program has written to it")]
pub struct Unwritten {
    path: String,
    source: io::Error,
}

/// Writes all of them out; the first with which that has failed. All, as the kernel tells of each only once.
pub fn files(image: &Image) -> Result<(), Unwritten> {
    let mut unwritten = None;
    let writes = |flags: u32| flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
    // Opening a file is an event to who watches it.
    let watches = image.descriptions.iter().any(|d| matches!(d.object, Some(Object::Inotify(_))));
    for (index, description) in image.descriptions.iter().enumerate().filter(|(_, d)| writes(d.flags)) {
        let Some(Object::File(file)) = &description.object else { continue };
        let holder = holder(image, index);
        // Opening it would break the lease.
        let anew = description.lease.is_none() && !watches;
        let of_program = || holder.map(|(pid, number)| ProcDir::process(pid).path(format!("fd/{number}")));
        let opened = of_program()
            .filter(|_| anew)
            .and_then(|link| reopened(&link, file).ok())
            .or_else(|| duplicate(holder?).ok().filter(|found| is_it(found, file)))
            .or_else(|| reopened(file.path(), file).ok().filter(|_| description.lease.is_none()));
        // Gone by now: a restart finds out by itself.
        let Some(opened) = opened else { continue };
        if let Err(source) = write_out(&opened) {
            unwritten.get_or_insert_with(|| Unwritten { path: file.path().display().to_string(), source });
        }
    }
    unwritten.map_or(Ok(()), Err)
}

fn write_out(file: &File) -> io::Result<()> {
    match file.sync_data() {
        // There is nothing to be written out: a device, say. EROFS of a file is a file system that has given up.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EROFS) && !is_regular(file) => Ok(()),
        done => done,
    }
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.is_file())
}

fn is_it(opened: &File, record: &FileRecord) -> bool {
    opened.metadata().is_ok_and(|found| record.is_same_inode(&found))
}

/// A process that had description `index`, and as what; it may have something else there by now.
fn holder(image: &Image, index: usize) -> Option<(Pid, i32)> {
    let number =
        |p: &Process| p.descriptors.iter().find(|d| d.description as usize == index).map(|d| d.number);
    image.processes.iter().find_map(|p| Some((p.reached_by(), number(p)? as i32)))
}

/// A description of our own, for reading. Only of that file: opening another one may act, or wait.
fn reopened(link: &Path, record: &FileRecord) -> io::Result<File> {
    let name = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(link)?;
    if !is_it(&name, record) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let link = format!("/proc/self/fd/{}", name.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(link)
}

/// Where it may not be opened.
fn duplicate((pid, number): (Pid, i32)) -> io::Result<File> {
    pidfd::get_fd(pidfd::of_thread(pid)?.as_fd(), number).map(Into::into)
}

//! Locks on files: of an open file description (flock(2), F_OFD_SETLK) and of a process (F_SETLK).
//!
//! They are taken again before the program runs: those of a description when it is made, those of a process by it,
//! after the last descriptor was closed in it, which would give them up.

use super::table::Descriptor;
use super::{Description, Object, Seen};
use crate::freeze::tree;
use crate::record::{Process, SharedObject};
use crate::refusal::Refusal;
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use crate::sys::{lock, pidfd};
use crate::task::proc::ProcDir;
use nix::sys::stat::{FileStat, fstat, stat};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// One lock.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Lock {
    /// By flock(2), of the whole file.
    #[prost(bool, tag = "1")]
    pub whole: bool,
    #[prost(bool, tag = "2")]
    pub exclusive: bool,
    /// Bytes from `start` on; up to the end of the file, wherever that is, where `length` is 0.
    #[prost(int64, tag = "3")]
    pub start: i64,
    #[prost(int64, tag = "4")]
    pub length: i64,
}

/// A lease (F_SETLEASE): whoever opens the file otherwise waits, and the program is told.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Lease {
    /// F_WRLCK; if not, F_RDLCK.
    #[prost(bool, tag = "1")]
    pub write: bool,
}

/// The lease in fdinfo: `lock:\t1: LEASE  ACTIVE    WRITE 359 00:13:11691 0 EOF`.
///
/// # Errors
/// The reason why it cannot be saved.
pub fn lease(info: &str) -> Result<Option<Lease>, String> {
    let words = |line: &str| -> Vec<String> { line.split_ascii_whitespace().map(str::to_owned).collect() };
    let leases = info.lines().filter(|l| l.starts_with("lock:")).map(words);
    let Some(lease) = leases.into_iter().find(|w| w.get(2).is_some_and(|kind| kind == "LEASE")) else {
        return Ok(None);
    };
    match (lease.get(3).map(String::as_str), lease.get(4).map(String::as_str)) {
        (Some("ACTIVE"), Some("WRITE")) => Ok(Some(Lease { write: true })),
        (Some("ACTIVE"), Some("READ")) => Ok(Some(Lease { write: false })),
        _ => Err("somebody waits for its lease (F_SETLEASE) to be given up; this cannot be saved".to_owned()),
    }
}

/// A write lease suffers no other open file: the memory of a file that is mapped or has no name is read through one, which would
/// wait for the lease to be given up by a program that stands still; and a restart maps it through one.
///
/// # Errors
/// Names the process.
pub fn check(
    processes: &[Process],
    descriptions: &[Description],
    objects: &[SharedObject],
) -> Result<(), Refusal> {
    let leased = |d: &Description| d.lease.is_some_and(|lease| lease.write);
    for (index, description) in descriptions.iter().enumerate().filter(|(_, d)| leased(d)) {
        let has = |p: &&Process| p.descriptors.iter().any(|d| d.description as usize == index);
        let Some(holder) = processes.iter().find(has) else { continue };
        let pid = Pid::from_raw(holder.pid);
        let Some(Object::File(file)) = &description.object else {
            let reason = "its content cannot be read without breaking that";
            return Err(Refusal::unsupported(pid, "has a write lease on a file without a name", reason));
        };
        let identity = (file.device, file.inode);
        let mut mapped = processes.iter().flat_map(|p| &p.mappings).filter_map(|v| v.file.as_ref());
        if mapped.any(|f| (f.device, f.inode) == identity)
            || objects.iter().any(|o| (o.device, o.inode) == identity)
        {
            let what = format!("has a write lease on {}, and it is mapped, too", file.path().display());
            return Err(Refusal::unsupported(pid, what, "a restart could not take the lease again"));
        }
    }
    Ok(())
}

/// Has the process take the lease through its descriptor.
pub fn rebuild_lease(lease: Lease, number: u32, remote: &mut Remote) -> io::Result<()> {
    const F_SETLEASE: u64 = 1024;
    let kind = if lease.write { libc::F_WRLCK } else { libc::F_RDLCK };
    let done = remote.call(libc::SYS_fcntl, &[u64::from(number), F_SETLEASE, kind as u64]);
    done.map(drop).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN) => io::Error::new(e.kind(), format!("somebody else has the file open: {e}")),
        _ => e,
    })
}

/// Whose locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Description,
    Process,
}

/// The locks in fdinfo: `lock:\t1: POSIX  ADVISORY  WRITE 359 00:13:11691 10 EOF` (fs/locks.c). Of a process fdinfo
/// shows only those that it has itself.
pub fn parse(info: &str, owner: Owner) -> Vec<Lock> {
    let of_line = |line: &str| -> Option<Lock> {
        let words: Vec<&str> = line.strip_prefix("lock:")?.split_ascii_whitespace().collect();
        let (kind, mode) = (*words.get(1)?, *words.get(3)?);
        let found = if kind == "POSIX" { Owner::Process } else { Owner::Description };
        if found != owner || !["POSIX", "FLOCK", "OFDLCK"].contains(&kind) {
            return None;
        }
        let start: i64 = words.get(6)?.parse().ok()?;
        let length = match *words.get(7)? {
            "EOF" => 0,
            end => end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
        };
        Some(Lock { whole: kind == "FLOCK", exclusive: mode == "WRITE", start, length })
    };
    info.lines().filter_map(of_line).collect()
}

impl Lock {
    fn bytes(&self) -> [u8; 32] {
        lock::bytes(self.exclusive, self.start, self.length)
    }
}

fn named(error: &io::Error) -> io::Error {
    let taken = [Some(libc::EAGAIN), Some(libc::EACCES)].contains(&error.raw_os_error());
    let why = if taken { "somebody else has a lock that the program had" } else { "a lock" };
    io::Error::new(error.kind(), format!("{why}: {error}"))
}

/// Takes the locks of a description.
pub fn rebuild(locks: &[Lock], fd: &OwnedFd) -> io::Result<()> {
    for one in locks {
        let done =
            if one.whole { lock::whole(fd, one.exclusive) } else { lock::of_description(fd, &one.bytes()) };
        done.map_err(|e| named(&e))?;
    }
    Ok(())
}

/// The description that ckptbpf was started with, of the same file as `fd` and open in the same way (`flags`), which has these
/// locks: whoever starts ckptbpf under a lock (`flock LOCK ckptbpf restart`) has taken it again.
pub fn inherited(locks: &[Lock], fd: &OwnedFd, flags: u32) -> Option<OwnedFd> {
    const ALIKE: u32 = (libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK) as u32;
    // Whoever has started ckptbpf has started the front of it.
    let own = tree::front();
    let file = fstat(fd).ok()?;
    let is_it = |&number: &i32| {
        let Ok((seen, close_on_exec)) = Seen::look(own, number) else { return false };
        let is_same = |other: FileStat| (other.st_dev, other.st_ino) == (file.st_dev, file.st_ino);
        let has = parse(&seen.info, Owner::Description);
        !close_on_exec
            && (seen.flags ^ flags) & ALIKE == 0
            && stat(&seen.link()).is_ok_and(is_same)
            && locks.iter().all(|lock| has.contains(lock))
    };
    let number = ProcDir::process(own).numbers("fd").ok()?.into_iter().find(is_it)?;
    pidfd::get_fd(pidfd::of_thread(own).ok()?.as_fd(), number).ok()
}

/// Has the process take its own.
pub fn rebuild_own(table: &[Descriptor], remote: &mut Remote) -> io::Result<()> {
    for descriptor in table {
        for one in &descriptor.locks {
            let at = remote.data(&one.bytes())?;
            let set = Call::new(libc::SYS_fcntl, &[u64::from(descriptor.number), libc::F_SETLK as u64, at]);
            let done = remote.run(&[set])?.first().copied().unwrap_or(0);
            if done < 0 {
                return Err(named(&io::Error::from_raw_os_error(-done as i32)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_by_owner() {
        let info = "pos:\t0\nlock:\t1: POSIX  ADVISORY  WRITE 359 00:13:11691 10 14\n\
            lock:\t2: FLOCK  ADVISORY  READ 359 00:13:11691 0 EOF\nlock:\t3: OFDLCK ADVISORY  WRITE -1 00:13:1 7 EOF\n";
        let lock = |whole, exclusive, start, length| Lock { whole, exclusive, start, length };
        assert_eq!(parse(info, Owner::Process), [lock(false, true, 10, 5)]);
        assert_eq!(parse(info, Owner::Description), [lock(true, false, 0, 0), lock(false, true, 7, 0)]);
        assert_eq!(lease(info), Ok(None));
        let leased = |how: &str| lease(&format!("pos:\t0\nlock:\t1: LEASE  {how} 359 00:13:11691 0 EOF\n"));
        assert_eq!(leased("ACTIVE    READ"), Ok(Some(Lease { write: false })));
        assert!(leased("BREAKING  READ").is_err());
    }
}

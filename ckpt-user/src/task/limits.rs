//! Resource limits (getrlimit(2)), read from /proc/PID/limits: prlimit(2) on another user's process is refused
//! without CAP_SYS_RESOURCE.

use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::io;

/// Soft and hard limit of one resource; u64::MAX is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Limit {
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// The lines of /proc/PID/limits in the order of the resource numbers (fs/proc/base.c).
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

const FILE_SIZE: u32 = 1;
pub const OPEN_FILES: u32 = 7;
pub const LOCKED_MEMORY: u32 = 8;
pub const NICE: u32 = 13;
pub const REALTIME_PRIORITY: u32 = 14;

/// Processes and pending signals: the kernel begins with what fits the machine's memory (kernel/fork.c).
pub const OF_THE_MACHINE: [u32; 2] = [6, 11];

/// Open files and pending signals: a restart itself needs some of both until right before the program runs.
const AT_LAST: [u32; 2] = [OPEN_FILES, 11];

/// As /proc/PID/limits calls it.
pub fn name(resource: u32) -> &'static str {
    NAMES.get(resource as usize).copied().unwrap_or("unknown limit")
}

/// As people read it.
pub fn shown(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

/// # Errors
/// InvalidData when a line is missing or has no two limits.
pub fn parse(text: &str) -> io::Result<Vec<Limit>> {
    let value = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    NAMES
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            let mut words = line.split_ascii_whitespace();
            let (soft, hard) = (value(words.next()?)?, value(words.next()?)?);
            Some(Limit { resource: i as u32, soft, hard })
        })
        .collect::<Option<Vec<Limit>>>()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "cannot understand /proc/PID/limits"))
}

/// A checkpoint has a copy of every description of the program's, and a restart makes them all beside the numbers that the
/// program uses: ckptbpf's own soft limit, which is made for select(2), is raised to the hard one. So is that of the size of files,
/// which is made for the program's. Never before the program is started: it has the limits of whoever started ckptbpf.
pub fn raise_own() {
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_FSIZE] {
        if let Ok((_, hard)) = getrlimit(resource) {
            // A failure shows as EMFILE, EINVAL or EFBIG where a descriptor is made, or something is written.
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

/// The same for a daemon, whose workers have its limits: as many open files as the machine allows (fs.nr_open), and files of any size.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE, where the hard limits are lower than that: they stay.
pub fn raise_to_most() -> io::Result<()> {
    let open_files = std::fs::read_to_string("/proc/sys/fs/nr_open")?;
    let open_files = open_files.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let wanted = [(Resource::RLIMIT_NOFILE, open_files), (Resource::RLIMIT_FSIZE, RLIM_INFINITY)];
    let raised = wanted.map(|(resource, most)| -> io::Result<()> {
        let (_, hard) = getrlimit(resource)?;
        if hard < most { Ok(setrlimit(resource, most, most)?) } else { Ok(()) }
    });
    raise_own();
    raised.into_iter().collect()
}

/// What this process may have of it at most; all, where that is not told.
pub fn own_hard(resource: Resource) -> u64 {
    getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard)
}

/// Those of whoever a process works for that are its own, too, by their numbers: all but CPU time and open files.
const TAKEN_OVER: [(u32, Resource); 14] = [
    (FILE_SIZE, Resource::RLIMIT_FSIZE),
    (2, Resource::RLIMIT_DATA),
    (3, Resource::RLIMIT_STACK),
    (4, Resource::RLIMIT_CORE),
    (5, Resource::RLIMIT_RSS),
    (6, Resource::RLIMIT_NPROC),
    (LOCKED_MEMORY, Resource::RLIMIT_MEMLOCK),
    (9, Resource::RLIMIT_AS),
    (10, Resource::RLIMIT_LOCKS),
    (11, Resource::RLIMIT_SIGPENDING),
    (12, Resource::RLIMIT_MSGQUEUE),
    (NICE, Resource::RLIMIT_NICE),
    (REALTIME_PRIORITY, Resource::RLIMIT_RTPRIO),
    (15, Resource::RLIMIT_RTTIME),
];

/// Lowers this process's own to another one's, where that has less ([`TAKEN_OVER`]).
///
/// # Errors
/// getrlimit(2), setrlimit(2).
pub fn lower_own(theirs: &[Limit]) -> io::Result<()> {
    for (number, resource) in TAKEN_OVER {
        let Some(limit) = theirs.iter().find(|limit| limit.resource == number) else { continue };
        let (soft, hard) = getrlimit(resource)?;
        let lower = hard.min(limit.hard);
        setrlimit(resource, soft.min(limit.soft).min(lower), lower)?;
    }
    Ok(())
}

/// Sets the limits of the calling skeleton; only those that differ from `current`. Some are raised as far as they may be, and
/// wait for [`rebuild_last`].
///
/// # Errors
/// EPERM when a hard limit would have to rise and CAP_SYS_RESOURCE is missing.
pub fn rebuild(wanted: &[Limit], current: &[Limit], remote: &mut Remote) -> io::Result<()> {
    let is_last = |limit: &Limit| AT_LAST.contains(&limit.resource);
    let raised = wanted.iter().map(|limit| {
        let own = current.iter().find(|own| own.resource == limit.resource && is_last(limit));
        own.map_or(*limit, |own| {
            let hard = own.hard.max(limit.hard);
            Limit { soft: hard, hard, ..*limit }
        })
    });
    for limit in raised.filter(|limit| !current.contains(limit)) {
        let call = call(&limit, remote)?;
        outcome(&limit, remote.run(&[call])?[0])?;
    }
    Ok(())
}

/// Lowers what [`rebuild`] has raised: no step after this needs a descriptor or a signal, nor do call lists end any more.
pub fn rebuild_last(wanted: &[Limit], remote: &mut Remote, gadget: u64) -> io::Result<()> {
    for limit in wanted.iter().filter(|limit| AT_LAST.contains(&limit.resource)) {
        let call = call(limit, remote)?;
        outcome(limit, remote.step(gadget, call)?)?;
    }
    Ok(())
}

fn call(limit: &Limit, remote: &mut Remote) -> io::Result<Call> {
    let bytes = [limit.soft, limit.hard].map(u64::to_le_bytes).concat();
    let at = remote.data(&bytes)?;
    Ok(Call::new(libc::SYS_prlimit64, &[0, u64::from(limit.resource), at, 0]))
}

fn outcome(limit: &Limit, result: i64) -> io::Result<()> {
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::from_raw_os_error(-result as i32);
    let (name, [soft, hard]) = (name(limit.resource), [limit.soft, limit.hard].map(shown));
    Err(io::Error::new(error.kind(), format!("cannot set {name:?} to {soft}/{hard}: {error}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn own_limits_are_understood() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(super::parse(&text).unwrap().len(), 16);
    }
}

//! What the image of an ordinary user may set in a restart by root.
//!
//! Limits, priorities and the like are set with root's rights, before ids drop. An image is its owner's to write, so none
//! of them may go beyond what a program has that ckptbpf starts for that owner: what ckptbpf itself has, and what anybody
//! may ask for from there. The rules are the kernel's (setrlimit(2), sched(7), ioprio_set(2), proc(5), capabilities(7),
//! fcntl(2)); where ckptbpf has no rights beyond the caller's, the kernel goes by them itself.

use crate::object::Object;
use crate::record::{Image, Process, Thread};
use crate::task::limits::{self, Limit};
use crate::task::proc::ProcDir;
use crate::task::scheduling::{self, Policy, Scheduling};
use crate::task::{credentials, settings};
use nix::unistd::getpid;
use std::io;

/// What ckptbpf itself has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    pub limits: Vec<Limit>,
    pub scheduling: Scheduling,
    pub oom_score_adj: i32,
    pub autogroup: i32,
    /// `SECBIT_*`.
    pub securebits: u32,
    /// `fs.pipe-max-size`, bytes.
    pub pipe: u32,
}

impl Means {
    /// Of this process.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn own() -> io::Result<Self> {
        let dir = ProcDir::process(getpid());
        let shown = settings::shown(getpid(), &dir.status()?)?;
        let pipe = std::fs::read_to_string("/proc/sys/fs/pipe-max-size");
        Ok(Self {
            limits: limits::parse(&dir.text("limits")?)?,
            scheduling: scheduling::capture(getpid(), getpid())?,
            oom_score_adj: shown.oom_score_adj,
            autogroup: shown.autogroup,
            securebits: crate::sys::ids::securebits()?,
            pipe: pipe.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1 << 20),
        })
    }

    fn hard(&self, resource: u32) -> u64 {
        self.limits.iter().find(|limit| limit.resource == resource).map_or(0, |limit| limit.hard)
    }
}

/// Something that an image claims and its owner could not get.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{who} had {what}, which uid {owner}, whose image this is, could not set here; give ckptbpf as much, or have root own \
     the image"
)]
pub struct Beyond {
    /// `process 12`, `thread 13`, or the program.
    pub who: String,
    /// With what ckptbpf has.
    pub what: String,
    /// Of the file.
    pub owner: u32,
}

/// Whether all that `image`, which belongs to `owner`, would have set is within `means`.
///
/// # Errors
/// The first thing that is not.
pub fn within(image: &Image, owner: u32, means: &Means) -> Result<(), Beyond> {
    let beyond = |who: String| move |what: String| Beyond { who, what, owner };
    for process in &image.processes {
        of_process(process, means).map_err(beyond(format!("process {}", process.pid)))?;
        for thread in &process.threads {
            of_thread(thread, means).map_err(beyond(format!("thread {}", thread.tid)))?;
        }
    }
    let pipes = image.descriptions.iter().filter_map(|description| match &description.object {
        Some(Object::Pipe(pipe)) => Some(pipe.capacity),
        _ => None,
    });
    match pipes.max().filter(|largest| *largest > means.pipe) {
        Some(largest) => Err(beyond("the program".to_owned())(format!(
            "a pipe of {largest} bytes (fs.pipe-max-size: {})",
            means.pipe
        ))),
        None => Ok(()),
    }
}

fn of_process(process: &Process, means: &Means) -> Result<(), String> {
    for limit in &process.limits {
        let own = means.hard(limit.resource);
        ensure(limit.hard.max(limit.soft) <= own, || {
            let (name, [hard, own]) = (limits::name(limit.resource), [limit.hard, own].map(limits::shown));
            format!("the hard limit {name:?} at {hard} (ckptbpf's own: {own})")
        })?;
    }
    let locked = process.mappings.iter().filter(|vma| vma.has("lo"));
    let locked = locked.fold(0u64, |sum, vma| sum.saturating_add(vma.end.saturating_sub(vma.start)));
    let own = means.hard(limits::LOCKED_MEMORY);
    ensure(locked <= own, || {
        format!("{locked} bytes of locked memory (ckptbpf's own hard limit: {})", limits::shown(own))
    })?;
    let Some(settings) = &process.settings else { return Ok(()) };
    ensure(settings.oom_score_adj >= means.oom_score_adj, || {
        format!("oom_score_adj {} (ckptbpf's own: {})", settings.oom_score_adj, means.oom_score_adj)
    })?;
    ensure(settings.autogroup >= means.autogroup.min(0), || {
        format!("an autogroup of nice value {} (ckptbpf's own: {})", settings.autogroup, means.autogroup)
    })
}

fn of_thread(thread: &Thread, means: &Means) -> Result<(), String> {
    if let Some(scheduling) = &thread.scheduling {
        of_scheduling(scheduling, means)?;
    }
    if let Some(credentials) = &thread.credentials {
        let changed = (credentials.securebits ^ means.securebits) & !credentials::KEEP_CAPS;
        ensure(changed == 0, || {
            format!("secure bits {:#x} (ckptbpf's own: {:#x})", credentials.securebits, means.securebits)
        })?;
    }
    let flushes = thread.control.as_ref().is_some_and(|control| control.io_flusher);
    ensure(!flushes, || "been made an I/O flusher (PR_SET_IO_FLUSHER)".to_owned())
}

fn of_scheduling(wanted: &Scheduling, means: &Means) -> Result<(), String> {
    let own = means.scheduling.policy();
    let policy = wanted.policy().ok_or("a scheduling policy that nobody knows")?;
    match policy {
        Policy::RealTime(priority) => {
            let most = means.hard(limits::REALTIME_PRIORITY);
            let has = matches!(own, Some(Policy::RealTime(own)) if priority <= own);
            ensure(has || u64::from(priority) <= most, || {
                format!("real-time priority {priority} (ckptbpf's own hard limit: {most})")
            })?;
        }
        Policy::Fair(nice) => {
            // setpriority(2): the limit is 20 minus the lowest nice value.
            let most = means.hard(limits::NICE);
            let lowest = if let Some(Policy::Fair(own)) = own { own } else { 0 };
            ensure(nice >= lowest || (20 - i64::from(nice)) as u64 <= most, || {
                format!("nice value {nice} (ckptbpf's own hard limit for 20 minus that: {most})")
            })?;
        }
        Policy::Other(number) => {
            ensure(own == Some(policy), || format!("scheduling policy {number} (sched(7))"))?;
        }
    }
    // A thread of real-time priority has that in I/O, too.
    let is_real_time = wanted.is_real_time_io() && !matches!(policy, Policy::RealTime(_));
    ensure(!is_real_time || means.scheduling.is_real_time_io(), || "real-time I/O priority".to_owned())
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

#[cfg(test)]
#[path = "rights_tests.rs"]
mod tests;

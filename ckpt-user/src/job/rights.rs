//! What the image of an ordinary user may set in a restart by root.
//!
//! Limits, priorities and the like are set with root's rights, before ids drop. An image is its owner's to write, so none
//! of them may go beyond what a program has that ckptbpf starts for that owner: what ckptbpf itself has, and what anybody
//! may ask for from there. The rules are the kernel's (setrlimit(2), sched(7), ioprio_set(2), proc(5), capabilities(7),
//! fcntl(2)); where ckptbpf has no rights beyond the caller's, the kernel goes by them itself.

use crate::object::Object;
use crate::object::option::{self, SocketOption};
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
    /// Most that anybody's socket buffer has, bytes, as SO_RCVBUF tells it.
    pub buffer: u32,
    /// `vm.mmap_min_addr`.
    pub lowest_address: u64,
}

impl Means {
    /// Of this process.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn own() -> io::Result<Self> {
        let dir = ProcDir::process(getpid());
        let shown = settings::shown(getpid(), &dir.status()?)?;
        // Each a few numbers; the last one is the most.
        let most = |name: &str, otherwise: u64| {
            let text = std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
            text.split_ascii_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
        };
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        // The kernel doubles what is asked for, and lets TCP have more by itself.
        let asked = ["net/core/rmem_max", "net/core/wmem_max"].map(|name| 2 * most(name, 212_992));
        let given = ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"].map(|name| most(name, 0));
        Ok(Self {
            limits: limits::parse(&dir.text("limits")?)?,
            scheduling: scheduling::capture(getpid(), getpid())?,
            oom_score_adj: shown.oom_score_adj,
            autogroup: shown.autogroup,
            securebits: crate::sys::ids::securebits()?,
            pipe: narrow(most("fs/pipe-max-size", 1 << 20)),
            buffer: narrow(asked.into_iter().chain(given).max().unwrap_or(0)),
            lowest_address: most("vm/mmap_min_addr", 65536),
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
    let segments = image.objects.iter().filter(|object| object.segment.is_some_and(|s| s.is_locked()));
    let locked = segments.fold(0u64, |sum, object| sum.saturating_add(object.size));
    let objects = image.descriptions.iter().filter_map(|description| description.object.as_ref());
    within_lock_limit(locked, means)
        .and_then(|()| objects.into_iter().try_for_each(|object| of_object(object, means)))
        .map_err(beyond("the program".to_owned()))
}

/// Limits that follow from the size of the machine, and that nobody has chosen: no program needs more of them than there is.
///
/// Lowers those of the image to ckptbpf's own.
pub fn fit(image: &mut Image, means: &Means) {
    for limit in image.processes.iter_mut().flat_map(|process| &mut process.limits) {
        if limits::OF_THE_MACHINE.contains(&limit.resource) {
            limit.hard = limit.hard.min(means.hard(limit.resource));
            limit.soft = limit.soft.min(limit.hard);
        }
    }
}

fn within_lock_limit(locked: u64, means: &Means) -> Result<(), String> {
    let own = means.hard(limits::LOCKED_MEMORY);
    ensure(locked <= own, || {
        format!("{locked} bytes of locked memory (ckptbpf's own hard limit: {})", limits::shown(own))
    })
}

fn of_object(object: &Object, means: &Means) -> Result<(), String> {
    let buffers = |options: &[SocketOption]| {
        let sizes = options.iter().filter(|o| option::is_size(o)).filter_map(|o| o.value.first_chunk::<4>());
        let largest = sizes.map(|size| u32::from_ne_bytes(*size)).max().unwrap_or(0);
        ensure(largest <= means.buffer, || {
            format!(
                "a socket buffer of {largest} bytes (at most, by net.core and net.ipv4: {})",
                means.buffer
            )
        })
    };
    match object {
        Object::Pipe(pipe) => ensure(pipe.capacity <= means.pipe, || {
            format!("a pipe of {} bytes (fs.pipe-max-size: {})", pipe.capacity, means.pipe)
        }),
        Object::Socket(socket) => buffers(&socket.options),
        Object::Endpoint(endpoint) => buffers(&endpoint.options),
        Object::Connection(connection) => buffers(&connection.options),
        Object::Timer(timer) => {
            let wakes = [libc::CLOCK_REALTIME_ALARM, libc::CLOCK_BOOTTIME_ALARM].contains(&timer.clock);
            ensure(!wakes, || "a timer that wakes the machine (timerfd_create(2))".to_owned())
        }
        Object::Epoll(epoll) => {
            let wakes = epoll.entries.iter().any(|entry| entry.events & libc::EPOLLWAKEUP as u32 != 0);
            ensure(!wakes, || "an epoll that keeps the machine awake (EPOLLWAKEUP)".to_owned())
        }
        _ => Ok(()),
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
    within_lock_limit(locked, means)?;
    let lowest = process.mappings.iter().map(|vma| vma.start).min().unwrap_or(u64::MAX);
    ensure(lowest >= means.lowest_address, || {
        format!("memory at {lowest:#x} (vm.mmap_min_addr: {:#x})", means.lowest_address)
    })?;
    let is_ours = process.surroundings.as_ref().is_none_or(|around| around.root.is_empty());
    // With files of its choice, a set-user-id program may be made to believe what is not so.
    ensure(is_ours, || "a root directory of its own (chroot(2))".to_owned())?;
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

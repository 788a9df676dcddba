//! Stopping, reading and making processes.
use std::{
    cmp::Ordering,
    fs::{self, File},
    io,
    os::fd::AsFd as _,
};

use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::{
        ptrace,
        uio::{RemoteIoVec, process_vm_readv},
        wait::waitpid,
    },
    unistd::{Pid, geteuid, getpid},
};

use super::{Feature, Way};
use crate::freeze::yama::{self, Scope};
use crate::job::namespace;
use crate::sys::{
    pidfd,
    probe::{self, Idle},
    ptrace as stops,
};

const CONFIG: &str = "use a kernel with CONFIG_CHECKPOINT_RESTORE (every distribution's has it)";
const PRIVILEGE: &str = "run it as root, or with CAP_CHECKPOINT_RESTORE";
const ALONE: &str = "run it as root, or allow users namespaces of their own (sysctls user.max_user_namespaces, \
                     kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, where there are such)";
const CONTAINER: &str = "in a container: allow the system call in its seccomp profile and add CAP_SYS_PTRACE";

pub(super) fn probe(way: Way) -> Vec<Feature> {
    let child = Idle::new();
    let kept = yama::of_children().err();
    let with = |probe: fn(&Idle) -> io::Result<()>| {
        let tried = child.as_ref().map_err(again).and_then(probe);
        tried.map_err(|error| match kept {
            Some(kept) if error.kind() == io::ErrorKind::PermissionDenied => {
                io::Error::other(kept.0.to_string())
            }
            _ => error,
        })
    };
    let container = kept.map_or(CONTAINER, |kept| kept.0.remedy());
    let alone = namespace::try_alone();
    vec![
        Feature::new("ptrace seize", "stopping the program, its registers")
            .required()
            .needs(with(seize), container),
        Feature::new("ptrace rseq", "restartable sequences (rseq) of threads")
            .required()
            .needs(with(rseq), "Linux 5.13 or newer has it (PTRACE_GET_RSEQ_CONFIGURATION)"),
        from_beside(child.as_ref().map_err(again).and_then(seize_from_beside)),
        Feature::new("process_vm_readv", "copying memory").required().needs(with(read_memory), container),
        Feature::new("pidfd_getfd", "the program's sockets, pipes and files")
            .required()
            .needs(with(copy), container),
        Feature::new("kcmp", "which descriptors are the same open file").prefers(
            with(compare),
            "eBPF or /proc/PID/fdinfo tells",
            "use a kernel with CONFIG_KCMP",
        ),
        Feature::new("/proc/PID/map_files", "files that are mapped and deleted").prefers(
            map_files(),
            "such a mapping refuses the checkpoint by name",
            PRIVILEGE,
        ),
        own_ids(&alone, way),
        within(
            &alone,
            Feature::new("pid namespace", "a restart where a process id is taken"),
            probe::unshare_in_child(CloneFlags::CLONE_NEWPID.bits()),
            "such a restart is refused",
            "run it as root",
        ),
        within(
            &alone,
            Feature::new("time namespace", "clocks that go on where they were"),
            probe::unshare_in_child(libc::CLONE_NEWTIME),
            "the monotonic clock jumps at a restart",
            "run it as root; the kernel needs CONFIG_TIME_NS",
        ),
        Feature::new("PR_SET_MM_MAP", "heap, arguments and environment at restart")
            .required()
            .needs(memory_map(), CONFIG),
    ]
}

/// The same error once more: every probe on the child that could not be made reports it.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn seize(child: &Idle) -> io::Result<()> {
    ptrace::seize(child.pid(), ptrace::Options::empty())?;
    ptrace::interrupt(child.pid())?;
    waitpid(child.pid(), None)?;
    Ok(ptrace::detach(child.pid(), None)?)
}

fn from_beside(tried: io::Result<()>) -> Feature {
    let (tried, action) = match Scope::now() {
        Scope::Anybody => (tried, CONTAINER),
        scope => (tried.map_err(|_| io::Error::other(scope.to_string())), scope.remedy()),
    };
    let feature = Feature::new("ptrace from beside", "attach to what ckptbpf has not started");
    feature.prefers(tried, "attach refuses it by name", action)
}

/// By a process that is none of its parents, as Yama may have it. It is let go of as that one ends.
fn seize_from_beside(child: &Idle) -> io::Result<()> {
    probe::try_in_child(|| Ok(ptrace::seize(child.pid(), ptrace::Options::empty())?))
}

fn rseq(child: &Idle) -> io::Result<()> {
    let running = stops::seize(child.pid(), 0)?;
    running.interrupt()?;
    let stopped = running.wait_stopped()?;
    let told = stopped.rseq().map(drop);
    stopped.detach()?;
    told
}

fn read_memory(child: &Idle) -> io::Result<()> {
    static HERE: u64 = 0x0123_4567_89ab_cdef;
    let mut there = [0u8; size_of::<u64>()];
    let from = RemoteIoVec { base: (&raw const HERE).addr(), len: there.len() };
    let read = process_vm_readv(child.pid(), &mut [io::IoSliceMut::new(&mut there)], &[from])?;
    if read == there.len() && there == HERE.to_ne_bytes() {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// A descriptor that both have: the child is a copy of us.
fn copy(child: &Idle) -> io::Result<()> {
    let process = pidfd::open(child.pid())?;
    allowed(pidfd::get_fd(process.as_fd(), 0))
}

fn compare(child: &Idle) -> io::Result<()> {
    match pidfd::compare(getpid(), child.pid(), pidfd::Kind::File, 0, 0) {
        Ok(Ordering::Equal) => Ok(()),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(e) => allowed::<()>(Err(e)),
    }
}

/// Without standard input there is no descriptor to try it on, but we were let.
fn allowed<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => Ok(()),
        other => other.map(drop),
    }
}

/// Opens our own executable through one of its mappings.
fn map_files() -> io::Result<()> {
    let entry = fs::read_dir("/proc/self/map_files")?.next().ok_or(io::ErrorKind::NotFound)??;
    File::open(entry.path()).map(drop)
}

/// What a user may not do here, but in a namespace of their own, which a restart makes.
const WITHIN: &str = "in a user namespace of its own, which a restart makes";

fn within(
    alone: &io::Result<()>,
    feature: Feature,
    here: io::Result<()>,
    instead: &str,
    action: &'static str,
) -> Feature {
    match (&here, alone) {
        (Err(error), Ok(())) => feature.fallback(format!("{error}; {WITHIN}"), ""),
        _ => feature.prefers(here, instead, action),
    }
}

/// A process id that has just become free, asked for again. Another process may be quicker: then another id.
fn own_ids(alone: &io::Result<()>, way: Way) -> Feature {
    const TRIES: usize = 5;
    let attempt = || {
        let free: Pid = Idle::new()?.pid();
        probe::child_with_id(free)
    };
    let mut result = attempt();
    for _ in 1..TRIES {
        match &result {
            Err(e) if e.raw_os_error() == Some(Errno::EEXIST as i32) => result = attempt(),
            _ => break,
        }
    }
    let feature = Feature::new("clone3 set_tid", "the same process ids after a restart").required();
    match (&result, alone) {
        (Err(error), Ok(())) => feature.fallback(format!("{error}; {WITHIN}"), ""),
        (Err(error), Err(alone)) if way == Way::Daemon => {
            feature.fallback(format!("{error}; {WITHIN}: {alone}; the daemon sees to which come next"), "")
        }
        (Err(error), Err(alone))
            if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() =>
        {
            feature.missing(format!("{error}; {WITHIN}: {alone}"), ALONE)
        }
        _ => feature.needs(result, PRIVILEGE),
    }
}

/// Sets, in a child, the layout that it has.
fn memory_map() -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?.1;
    let fields: Vec<u64> = after_name.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    // proc_pid_stat(5) counts from 1, and the field after the name is 3.
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0);
    let brk = probe::program_break();
    probe::set_memory_map_in_child([
        field(26),
        field(27),
        field(45),
        field(46),
        field(47),
        brk,
        field(28),
        field(48),
        field(49),
        field(50),
        field(51),
    ])
}

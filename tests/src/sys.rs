//! The unsafe code of this crate: calls for which nix and std have no safe form.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::ForkResult;

/// Forks; only for a process with a single thread, which `box-init` is until the box is gone.
pub fn fork_single_threaded() -> io::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("fork with {threads} threads")));
    }
    // SAFETY: what makes fork dangerous is a lock that another thread holds at that moment and that the child
    // then waits for; there is no other thread, as counted above, and none can appear between count and call.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Lets the command start with no signal blocked and none ignored, whatever this process inherited.
pub fn start_with_default_signals(command: &mut Command) {
    let reset = || {
        for signal in 1..=64_i64 {
            let default = [0_u64; 4];
            // SAFETY: the kernel reads one `struct kernel_sigaction` (handler, flags, restorer and a 64-bit mask,
            // 32 bytes on x86-64), all zero meaning SIG_DFL, from a live local of that size, and writes nothing.
            // libc's own sigaction refuses 32 and 33. SIGKILL and SIGSTOP give EINVAL, which is right.
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0_usize, 8_usize) };
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(io::Error::from)
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes system calls on
    // values that live on its stack, and allocates nothing.
    unsafe { command.pre_exec(reset) };
}

/// Lets no descriptor but the standard three pass on to programs: whoever runs the tests may have left some open.
pub fn keep_descriptors_to_ourselves() -> io::Result<()> {
    let (first, last) = (3_u32, u32::MAX);
    // SAFETY: close_range takes three integers; with CLOEXEC it closes nothing in this process, so that no owner of a
    // descriptor finds it gone.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    match done {
        0 => Ok(()),
        // Before Linux 5.11: one by one.
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => {
            let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect();
            for fd in open.into_iter().filter(|fd| *fd >= first as i32) {
                // SAFETY: three integers; the descriptor of the list itself is closed by now, which fails and changes nothing.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of our own of what process `pid` has open as `number` (pidfd_getfd(2)).
pub fn share_descriptor(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let owned = |fd: i64| {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else here knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: pidfd_open takes two integers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: pidfd_getfd takes three integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// Sends any signal, real-time ones and 0 included; the error is an errno.
pub fn kill(pid: i32, signal: i32) -> Result<(), i32> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    let sent = unsafe { libc::kill(pid, signal) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}

/// One ended child and its raw wait status; `None` when no child has ended. Never blocks.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: waitpid writes one int through the pointer, which refers to a live local of that type.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Switches the loopback interface of this network namespace on.
pub fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero is a valid ifreq: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads one ifreq, a live local of that type.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

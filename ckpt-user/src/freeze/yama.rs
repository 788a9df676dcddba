//! Yama: a security module with which it is not enough to be a process's user to trace it
//! (Documentation/admin-guide/LSM/Yama.rst; `yama_ptrace_access_check` of security/yama/yama_lsm.c).
//!
//! It minds what takes PTRACE_MODE_ATTACH: ptrace(2), process_vm_readv(2), pidfd_getfd(2), and of /proc `mem` and `syscall`. The
//! rest of /proc, `pagemap` and `map_files` too, and kcmp(2) take PTRACE_MODE_READ, and are as ever. A thread that is traced is
//! open to its tracer in all of these ways.

use crate::sys::{caps, pidfd};
use crate::task::proc::{ProcDir, reached_by};
use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::os::fd::AsFd;

/// Who may trace a process of the same user: kernel.yama.ptrace_scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// 0, or there is no Yama.
    Anybody,
    /// 1: those that it comes from, one that it has named itself (PR_SET_PTRACER) with what comes from that, and whoever has
    /// CAP_SYS_PTRACE in its user namespace.
    Ancestors,
    /// 2: whoever has CAP_SYS_PTRACE there.
    Capable,
    /// 3, until the machine is booted anew: nobody.
    Nobody,
}

impl Scope {
    /// As it is now.
    pub fn now() -> Self {
        let text = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        text.map_or(Self::Anybody, |text| Self::of(&text))
    }

    fn of(text: &str) -> Self {
        match text.trim() {
            "0" => Self::Anybody,
            "1" => Self::Ancestors,
            "2" => Self::Capable,
            _ => Self::Nobody,
        }
    }

    /// What can be done about it; nothing where nobody is kept from anything.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Anybody => "",
            Self::Ancestors => "do it as root, or have root allow it: sysctl kernel.yama.ptrace_scope=0",
            Self::Capable => "do it as root, or have root allow it: sysctl kernel.yama.ptrace_scope=1",
            Self::Nobody => "the machine has to be booted anew, with another one",
        }
    }

    /// What it means to those whom a daemon serves.
    pub fn for_served(self) -> Option<&'static str> {
        match self {
            Self::Anybody => None,
            Self::Ancestors => Some(
                "kernel.yama.ptrace_scope=1: each process of a job names its worker as the one that may trace it (PR_SET_PTRACER)",
            ),
            Self::Capable => Some(
                "kernel.yama.ptrace_scope=2: users' launches are refused, and their restarts are done without the daemon",
            ),
            Self::Nobody => {
                Some("kernel.yama.ptrace_scope=3: nothing can be launched, checkpointed or restarted")
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anybody => "kernel.yama.ptrace_scope=0 lets a user's processes trace one another",
            Self::Ancestors => {
                "kernel.yama.ptrace_scope=1 lets a process be traced by those that it comes from alone"
            }
            Self::Capable => "kernel.yama.ptrace_scope=2 lets nobody trace without CAP_SYS_PTRACE",
            Self::Nobody => "kernel.yama.ptrace_scope=3 lets nobody trace",
        })
    }
}

/// Yama does not let it be traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", .0, .0.remedy())]
pub struct Kept(pub Scope);

/// Whether this process may trace what it starts.
///
/// # Errors
/// Why not.
pub fn of_children() -> Result<(), Kept> {
    let scope = Scope::now();
    let may = match scope {
        Scope::Anybody | Scope::Ancestors => true,
        Scope::Capable => caps::has(caps::SYS_PTRACE),
        Scope::Nobody => false,
    };
    if may { Ok(()) } else { Err(Kept(scope)) }
}

/// Whether what is rebuilt may be traced: whoever has no capability has all of them in the namespace that is made for it.
///
/// # Errors
/// Why not.
pub fn of_rebuilt() -> Result<(), Kept> {
    let scope = Scope::now();
    if scope == Scope::Nobody { Err(Kept(scope)) } else { Ok(()) }
}

/// Whether Yama keeps this process from tracing `process`: it may be looked at, and no more. What else may be in the way
/// (another user, a set-user-id program) is not asked for.
///
/// # Errors
/// It does.
pub fn of(process: Pid) -> Result<(), Kept> {
    let scope = Scope::now();
    if scope == Scope::Anybody {
        return Ok(());
    }
    let by = reached_by(process);
    // The right to is asked for before the number is looked at (`__pidfd_fget` of kernel/pid.c).
    let none = pidfd::of_thread(by).and_then(|process| pidfd::get_fd(process.as_fd(), -1));
    let is_closed = none.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if is_closed && ProcDir::process(by).link("exe").is_ok() { Err(Kept(scope)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_known_are_the_strictest() {
        let all = ["0\n", "1\n", "2\n", "3\n", "4\n"].map(Scope::of);
        let known = [Scope::Anybody, Scope::Ancestors, Scope::Capable, Scope::Nobody, Scope::Nobody];
        assert_eq!(all, known);
    }

    #[test]
    fn what_is_kept_is_named_with_what_to_do() {
        let said = Kept(Scope::Capable).to_string();
        assert!(said.contains("kernel.yama.ptrace_scope=2 lets nobody"), "{said}");
        assert!(said.ends_with("sysctl kernel.yama.ptrace_scope=1"), "{said}");
        assert_eq!(of(Pid::this()), Ok(()));
    }
}

//! What the kernel's words about a task look like when it has been told certain things: learnt from children of ours that
//! have told it just that ([`Doer`]). Which bit or word it is has changed between kernels, and is never assumed.

use crate::sys::bpf::{Bpf, BpfError, Keyrings, ProcessRow, TaskRow};
use crate::sys::deed::{Deed, Doer};
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::io;
use std::time::Duration;
use zerocopy::FromZeros;

/// What threads may be denied, or have asked for, that only they themselves can be asked about.
const OF_THREADS: [Deed; 3] = [Deed::DenyCounter, Deed::DenyCpuid, Deed::FlushCache];
/// The same of processes: huge pages, also where not advised; memory that is writable and executable, also in children.
const OF_PROCESSES: [Deed; 4] =
    [Deed::DenyHugePages(0), Deed::DenyHugePages(2), Deed::DenyExecutable(1), Deed::DenyExecutable(3)];
/// How often the words are read: bits that come and go by themselves are not taken for lasting ones.
const LOOKS: usize = 3;

/// What was learnt, and what ckptbpf itself is like, which a program begins with.
#[derive(Debug, Clone, Copy)]
pub struct Learnt {
    /// Bits of `thread_info.flags`.
    thread: u64,
    /// Bits of `mm_struct.flags`.
    process: u64,
    /// Which word of the security modules says that Landlock restricts it.
    landlock: Option<usize>,
    own: TaskRow,
}

/// What was learnt, as one process tells another.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Bits {
    #[prost(uint64, tag = "1")]
    thread: u64,
    #[prost(uint64, tag = "2")]
    process: u64,
    #[prost(uint32, optional, tag = "3")]
    landlock: Option<u32>,
}

impl Learnt {
    /// For another process.
    pub fn bits(&self) -> Bits {
        Bits {
            thread: self.thread,
            process: self.process,
            landlock: self.landlock.and_then(|word| u32::try_from(word).ok()),
        }
    }

    /// What another process has learnt, for one whose programs begin with nothing that restricts them; `None` of what no kernel
    /// has.
    pub fn told(bits: Bits) -> Option<Self> {
        let Bits { thread, process, landlock } = bits;
        let landlock = landlock.map(usize::try_from).transpose().ok()?;
        let is_one = landlock.is_none_or(|word| word < ckpt_common::SECURITY);
        is_one.then(|| Self { thread, process, landlock, own: TaskRow::new_zeroed() })
    }

    /// # Errors
    /// Our own words cannot be read. Of what no child could be made for, everybody is asked.
    pub fn new(bpf: &mut Bpf) -> Result<Self, BpfError> {
        let own = Pid::this();
        let host = bpf.track_own(own.as_raw() as u32)?;
        let rows = bpf.tasks();
        bpf.untrack(host)?;
        let own_row = |row: &&TaskRow| row.ids.tgid == host;
        let own = rows?.iter().find(own_row).copied().ok_or(BpfError::NoProcess(host))?;
        let mut learnt = Self { thread: u64::MAX, process: u64::MAX, landlock: None, own };
        if let Some(base) = Watched::new(bpf, Deed::Nothing)? {
            let thread =
                OF_THREADS.map(|deed| Watched::new(bpf, deed).map(|w| w.map(|w| w.thread & !base.ever)));
            let process =
                OF_PROCESSES.map(|d| Watched::new(bpf, d).map(|w| w.map(|w| w.process ^ base.process)));
            learnt.thread = union(thread)?;
            learnt.process = union(process)?;
            if let Some(restricted) = Watched::new(bpf, Deed::Landlock)? {
                let differs = |&i: &usize| restricted.security[i] != base.security[i];
                learnt.landlock = (0..base.security.len()).find(differs);
                if learnt.landlock.is_none() {
                    log::warn!("whether Landlock restricts a program cannot be seen in this kernel");
                }
            }
        }
        Ok(learnt)
    }

    /// Whether a thread with these `TIF_*` bits may have to be asked.
    pub fn may_be_denied(&self, thread_flags: u64) -> bool {
        thread_flags & self.thread != 0
    }

    /// Whether a process with these `MMF_*` bits may have to be asked.
    pub fn memory_may_be_denied(&self, memory_flags: u64) -> bool {
        memory_flags & self.process != 0
    }

    /// What of a thread no restart could give back: what, and why.
    pub fn lost(&self, row: &TaskRow) -> Option<(&'static str, &'static str)> {
        let (it, own) = (&row.settings, &self.own.settings);
        if self.landlock.is_some_and(|i| it.security[i] != own.security[i]) {
            Some((
                "is restricted by Landlock",
                "no system call tells the rules, and it would be free after a restart",
            ))
        } else if it.ports != 0 || it.port_level != own.port_level {
            Some(("may use I/O ports (ioperm, iopl)", "this cannot be saved yet"))
        } else if it.semaphores != 0 {
            Some((
                "has used System V semaphores with SEM_UNDO",
                "what its end would take back cannot be saved yet",
            ))
        } else if it.ring != 0 {
            Some((
                "has an io_uring, or one that is closed with requests in flight",
                "what they read lands in memory without a trace",
            ))
        } else {
            None
        }
    }

    /// Which of [`ckpt_common::TaskSettings::security`] tells whether Landlock restricts a thread.
    pub fn word_of_landlock(&self) -> Option<usize> {
        self.landlock
    }

    /// Our own keyrings.
    pub fn own_keyrings(&self) -> &Keyrings {
        &self.own.keyrings
    }
}

fn union<const N: usize>(found: [Result<Option<u64>, BpfError>; N]) -> Result<u64, BpfError> {
    found.into_iter().try_fold(0, |all, one| Ok(all | one?.unwrap_or(0)))
}

/// The words about one doer.
struct Watched {
    /// Bits that each look has found.
    thread: u64,
    /// Bits that any look has found.
    ever: u64,
    process: u64,
    security: [u64; ckpt_common::SECURITY],
}

impl Watched {
    /// `None` where the kernel does not take the deed, or no child could be made.
    fn new(bpf: &mut Bpf, deed: Deed) -> Result<Option<Self>, BpfError> {
        let doer = match Doer::of(deed) {
            Ok(Some(doer)) => doer,
            Ok(None) => return Ok(None),
            Err(source) => return Err(BpfError::Proc { path: "a child of ckptbpf", source }),
        };
        sleeps(doer.pid()).map_err(|source| BpfError::Proc { path: "a child of ckptbpf", source })?;
        let host = bpf.track_own(doer.pid().as_raw() as u32)?;
        let looked = Self::look(bpf, host);
        bpf.untrack(host)?;
        looked.map(Some)
    }

    fn look(bpf: &Bpf, host: u32) -> Result<Self, BpfError> {
        let mut words = Self { thread: u64::MAX, ever: 0, process: 0, security: [0; ckpt_common::SECURITY] };
        for _ in 0..LOOKS {
            let tasks = bpf.tasks()?;
            let task = tasks.iter().find(|row| row.ids.tgid == host).ok_or(BpfError::NoProcess(host))?;
            words.thread &= task.settings.thread_flags;
            words.ever |= task.settings.thread_flags;
            words.security = task.settings.security;
        }
        let processes = bpf.processes()?;
        let process: &ProcessRow =
            processes.iter().find(|row| row.tgid == host).ok_or(BpfError::NoProcess(host))?;
        words.process = process.memory_flags;
        Ok(words)
    }
}

/// Waits until a doer sleeps: it has other bits while it runs, which would be taken for those of a deed. The same bits are to be
/// seen in all of them.
///
/// # Errors
/// It has been killed.
fn sleeps(doer: Pid) -> io::Result<()> {
    loop {
        match ProcDir::process(doer).stat()?.state() {
            'S' => return Ok(()),
            'Z' | 'X' => return Err(io::ErrorKind::BrokenPipe.into()),
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{bpf, wait};

    #[test]
    fn what_was_learnt_is_told_to_others() {
        let bits = Bits { thread: 1, process: 2, landlock: Some(3) };
        let told = Learnt::told(bits).unwrap();
        assert_eq!(told.bits(), bits);
        assert!(told.may_be_denied(3) && !told.may_be_denied(2) && told.memory_may_be_denied(2));
        let mut restricted = TaskRow::new_zeroed();
        assert_eq!(told.lost(&restricted), None);
        restricted.settings.security[3] = 1;
        assert!(told.lost(&restricted).unwrap().0.contains("Landlock"));
        assert!(Learnt::told(Bits { landlock: Some(8), ..bits }).is_none());
    }

    #[test]
    fn a_doer_is_looked_at_when_it_sleeps() {
        for _ in 0..200 {
            let doer = Doer::of(Deed::Nothing).unwrap().unwrap();
            sleeps(doer.pid()).unwrap();
            assert_eq!(ProcDir::process(doer.pid()).stat().unwrap().state(), 'S');
        }
        let killed = Doer::of(Deed::Nothing).unwrap().unwrap();
        wait::send(killed.pid(), libc::SIGKILL);
        while wait::unreaped(killed.pid()).is_none() {}
        assert_eq!(sleeps(killed.pid()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// Bits of kernels that are known: 15 and 16, since Linux 6.18 20 and 21, for instructions; 10, then 12, for the cache.
    #[test]
    fn what_is_learnt_is_little_and_denials_are_among_it() {
        if crate::skipped::without_root() {
            return;
        }
        let Ok(mut kernel) = bpf::Kernel::load() else { return crate::skipped::because("no eBPF here") };
        let learnt = Learnt::new(&mut kernel).unwrap();
        assert!((1..=4).contains(&learnt.thread.count_ones()), "{:#x}", learnt.thread);
        assert!(learnt.may_be_denied(learnt.thread) && !learnt.may_be_denied(0));
        let base = Watched::new(&mut kernel, Deed::Nothing).unwrap().unwrap();
        assert!(!learnt.may_be_denied(base.thread), "a plain child is asked nothing");
        assert!(!learnt.memory_may_be_denied(base.process));
        for deed in OF_PROCESSES {
            let denied = Watched::new(&mut kernel, deed).unwrap();
            assert!(denied.is_none_or(|d| learnt.memory_may_be_denied(d.process)), "{deed:?}");
        }
    }
}

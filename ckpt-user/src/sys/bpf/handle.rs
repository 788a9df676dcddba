//! The loaded programs: whom they watch, what they report, and what the iterators read.
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs,
};
use aya_log::EbpfLogger;
use ckpt_common::{FileRow, LifecycleEvent, ProcessRow, SigActionsRow, TaskIds, TaskRow, VmaRow, WriteFault};
use zerocopy::FromBytes;

use super::{
    About, Attached, BpfError, Fallback, INITIAL_PID_NAMESPACE, Limits, Lost, Offsets, PidTable, Program,
    about::not_restrictable, chain, events, iterators,
};

const TOO_LONG: &str = "it cannot be restricted to a process here, and would go through the whole machine's";

/// Who reads for whose eyes: host thread id → host process id.
pub(super) struct Eyes(pub Mutex<HashMap<MapData, u32, u32>>);

impl Eyes {
    fn map(&self) -> MutexGuard<'_, HashMap<MapData, u32, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it is there a thread reads for another process's eyes, however that ends.
struct ForOthers<'a> {
    eyes: &'a Eyes,
    reader: u32,
}

impl Drop for ForOthers<'_> {
    fn drop(&mut self) {
        // One that stays makes whoever has that thread id be told of less, and of nothing more.
        let _ = self.eyes.map().remove(&self.reader);
    }
}

/// The loaded programs. Dropping it unloads them; nothing of it stays in the kernel.
pub struct Bpf {
    pub(super) object: Ebpf,
    pub(super) lifecycle: RingBuf<MapData>,
    pub(super) faults: RingBuf<MapData>,
    pub(super) tracked: HashMap<MapData, u32, u32>,
    pub(super) eyes: Eyes,
    pub(super) lost: PerCpuArray<MapData, u64>,
    pub(super) logger: Option<EbpfLogger<&'static dyn log::Log>>,
    pub(super) offsets: Offsets,
    pub(super) own_namespace: u32,
    pub(super) loaded: Vec<Program>,
    pub(super) fallbacks: Vec<Fallback>,
    /// Whether iterators can be restricted to a process, until the kernel says otherwise.
    pub(super) restrictable: AtomicBool,
}

impl Bpf {
    /// The programs that are not to be had.
    #[must_use]
    pub fn fallbacks(&self) -> &[Fallback] {
        &self.fallbacks
    }

    /// Whether a program is loaded.
    #[must_use]
    pub fn has(&self, program: Program) -> bool {
        self.loaded(program).is_ok()
    }

    /// Whether iterators can be restricted to a process: known once one was read.
    #[must_use]
    pub fn is_restrictable(&self) -> bool {
        self.restrictable.load(Ordering::Relaxed)
    }

    /// Does without the iterators of mappings and of descriptors where the kernel cannot restrict them to a process (before Linux
    /// 6.1): each answer would take them through those of all of the node, with the lock of every address space. Threads alone
    /// are gone through quickly.
    pub fn leave_out_long_walks(&mut self) {
        let own = std::process::id();
        if self.is_restrictable()
            && let Err(BpfError::Iterator { source, .. }) =
                self.walk::<TaskIds>(Program::Pids, Some(own), &Limits::default())
            && not_restrictable(&source)
        {
            self.restrictable.store(false, Ordering::Relaxed);
        }
        if self.is_restrictable() {
            return;
        }
        let loaded = std::mem::take(&mut self.loaded).into_iter();
        let (long, short): (Vec<Program>, Vec<Program>) =
            loaded.partition(|program| matches!(program, Program::Vmas | Program::Descriptors));
        self.loaded = short;
        let refused = |program| Fallback { program, reason: TOO_LONG.to_owned() };
        self.fallbacks.extend(long.into_iter().map(refused));
    }

    /// Where this kernel's fields are.
    #[must_use]
    pub const fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// Watches a process, by its host id, and every child it will make. Its id in our namespace is looked up when
    /// that is another one.
    ///
    /// # Errors
    /// It is not visible in our pid namespace, or the map is full.
    pub fn track(&mut self, tgid: u32) -> Result<(), BpfError> {
        let own = if self.own_namespace == INITIAL_PID_NAMESPACE {
            tgid
        } else {
            self.pids()?.own(tgid).ok_or(BpfError::NoProcess(tgid))?
        };
        self.insert(tgid, own)
    }

    /// The same by its id in our own pid namespace; gives the host id.
    ///
    /// # Errors
    /// There is no such process, or the map is full.
    pub fn track_own(&mut self, own: u32) -> Result<u32, BpfError> {
        let tgid = if self.own_namespace == INITIAL_PID_NAMESPACE {
            own
        } else {
            self.pids()?.host(own).ok_or(BpfError::NoProcess(own))?
        };
        self.insert(tgid, own)?;
        Ok(tgid)
    }

    /// The same for several at once.
    ///
    /// # Errors
    /// One is not there, or the map is full; those before it are watched.
    pub fn track_all_own(&mut self, own: &[u32]) -> Result<(), BpfError> {
        let nested = self.own_namespace != INITIAL_PID_NAMESPACE && !own.is_empty();
        let table = if nested { Some(self.pids()?) } else { None };
        for &own in own {
            let tgid = table.as_ref().map_or(Some(own), |t| t.host(own)).ok_or(BpfError::NoProcess(own))?;
            self.insert(tgid, own)?;
        }
        Ok(())
    }

    /// What the host calls a thread of a process of our own pid namespace; none of one that is gone.
    ///
    /// # Errors
    /// The iterator cannot be read.
    pub fn host_of(&self, process: u32, thread: u32) -> Result<Option<u32>, BpfError> {
        if self.own_namespace == INITIAL_PID_NAMESPACE {
            return Ok(Some(thread));
        }
        let limits = Limits::default();
        let rows: Vec<TaskIds> = self.walk(Program::Pids, Some(process), &limits)?;
        Ok(PidTable::new(&rows, self.own_namespace).host(thread))
    }

    /// What this thread reads in `question` is for the eyes of another process, by its id in our own pid namespace: rows tell of
    /// what that one traces alone.
    ///
    /// # Errors
    /// That one is gone, or there is no more room; nothing has been asked then.
    pub fn for_the_eyes_of<T>(&self, tracer: u32, question: impl FnOnce() -> T) -> Result<T, BpfError> {
        let own = std::process::id();
        let reader = nix::unistd::gettid().as_raw().cast_unsigned();
        let gone = BpfError::NoProcess;
        let reader = self.host_of(own, reader)?.ok_or(gone(own))?;
        let tracer = self.host_of(tracer, tracer)?.ok_or(gone(tracer))?;
        let noted = self.eyes.map().insert(reader, tracer, 0);
        noted.map_err(|e| BpfError::Track { tgid: tracer, reason: chain(&e) })?;
        let _until_it_is_over = ForOthers { eyes: &self.eyes, reader };
        Ok(question())
    }

    fn insert(&mut self, tgid: u32, own: u32) -> Result<(), BpfError> {
        self.tracked.insert(tgid, own, 0).map_err(|e| BpfError::Track { tgid, reason: chain(&e) })
    }

    /// Watches it no longer. One that is not watched (any more) is no error.
    ///
    /// # Errors
    /// The map cannot be changed.
    pub fn untrack(&mut self, tgid: u32) -> Result<(), BpfError> {
        match self.tracked.remove(&tgid) {
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(e) => Err(BpfError::Track { tgid, reason: chain(&e) }),
        }
    }

    /// The watched processes: host id and id in our own pid namespace, in order of the former.
    #[must_use]
    pub fn tracked(&self) -> Vec<(u32, u32)> {
        let mut all: Vec<_> = self.tracked.iter().filter_map(Result::ok).collect();
        all.sort_unstable();
        all
    }

    /// Begins to report forks, execs and exits of tracked processes, and to track their children.
    ///
    /// # Errors
    /// One of the programs is not loaded or cannot be attached; then none is.
    pub fn attach_lifecycle(&mut self) -> Result<Attached, BpfError> {
        self.attach(&[Program::OnFork, Program::OnExec, Program::OnGroupExit])
    }

    /// Begins to report write faults; those of system calls only where the kernel takes the program for it. Costs
    /// every fault on the node 0.1 µs: attach it for as long as it is needed.
    ///
    /// # Errors
    /// As [`Self::attach_lifecycle`].
    pub fn attach_faults(&mut self) -> Result<Attached, BpfError> {
        let mut wanted = vec![Program::OnWriteFault];
        wanted.extend(Some(Program::OnKernelWriteFault).filter(|&p| self.has(p)));
        self.attach(&wanted)
    }

    fn attach(&mut self, wanted: &[Program]) -> Result<Attached, BpfError> {
        let mut links = Vec::new();
        for &program in wanted {
            self.loaded(program)?;
            let Some(programs::Program::BtfTracePoint(p)) = self.object.program_mut(program.name()) else {
                continue;
            };
            let link = p.attach().and_then(|id| p.take_link(id));
            links.push(link.map_err(|e| BpfError::Attach { program: program.name(), reason: chain(&e) })?);
        }
        Ok(Attached { links })
    }

    /// Becomes readable when there is a lifecycle event.
    #[must_use]
    pub fn lifecycle_fd(&self) -> BorrowedFd<'_> {
        self.lifecycle.as_fd()
    }

    /// The lifecycle events since the last call, oldest first.
    pub fn lifecycle(&mut self) -> Vec<LifecycleEvent> {
        events::drain(&mut self.lifecycle)
    }

    /// The write faults since the last call, oldest first. Nothing wakes the reader: come by before the ring is full.
    pub fn write_faults(&mut self) -> Vec<WriteFault> {
        events::drain(&mut self.faults)
    }

    /// What could not be reported since the programs were loaded.
    #[must_use]
    pub fn lost(&self) -> Lost {
        Lost::from_counters(|index| self.counted(index))
    }

    pub(super) fn counted(&self, index: u32) -> u64 {
        self.lost.get(&index, 0).map_or(0, |values| values.iter().sum())
    }

    /// Passes what the programs have logged on to the `log` crate.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Ids of every thread in our pid namespace, tracked or not.
    ///
    /// # Errors
    /// The iterator is not loaded or cannot be read.
    pub fn pids(&self) -> Result<PidTable, BpfError> {
        let rows: Vec<TaskIds> = self.walk(Program::Pids, None, &Limits::default())?;
        Ok(PidTable::new(&rows, self.own_namespace))
    }

    /// The tracked processes, to be asked about.
    pub fn about_tracked(&self) -> About<'_> {
        let own = self.tracked().into_iter().map(|(_, own)| own);
        About::new(self, own.filter(|own| *own != 0).collect(), Limits::default())
    }

    /// Some processes, by their ids in our own pid namespace.
    pub fn about(&self, processes: Vec<u32>, limits: Limits) -> About<'_> {
        About::new(self, processes, limits)
    }

    /// Every thread of the tracked processes.
    ///
    /// # Errors
    /// As of [`About`], here and in what follows.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, BpfError> {
        self.about_tracked().tasks()
    }

    /// The tracked processes, one row each.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn processes(&self) -> Result<Vec<ProcessRow>, BpfError> {
        self.about_tracked().processes()
    }

    /// The mappings of the tracked processes, by process and address.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn vmas(&self) -> Result<Vec<VmaRow>, BpfError> {
        self.about_tracked().vmas()
    }

    /// The open descriptors of the tracked processes, by process, table and number.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn files(&self) -> Result<Vec<FileRow>, BpfError> {
        self.about_tracked().files()
    }

    /// The signal actions of the tracked processes, one row each.
    ///
    /// # Errors
    /// As of [`About`].
    pub fn signal_actions(&self) -> Result<Vec<SigActionsRow>, BpfError> {
        self.about_tracked().signal_actions()
    }

    pub(super) fn walk<T: FromBytes>(
        &self,
        program: Program,
        process: Option<u32>,
        limits: &Limits,
    ) -> Result<Vec<T>, BpfError> {
        self.loaded(program)?;
        let name = program.name();
        let Some(programs::Program::Iter(iterator)) = self.object.program(name) else {
            return Err(BpfError::NotLoaded { program: name, reason: "not an iterator".into() });
        };
        let fd = iterator.fd().map_err(|e| BpfError::NotLoaded { program: name, reason: chain(&e) })?;
        iterators::rows(fd.as_fd(), process, limits).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => BpfError::Torn { program: name },
            _ => BpfError::Iterator { program: name, source },
        })
    }

    fn loaded(&self, program: Program) -> Result<(), BpfError> {
        if self.loaded.contains(&program) {
            return Ok(());
        }
        let refused = self.fallbacks.iter().find(|fallback| fallback.program == program);
        let reason = refused
            .map_or_else(|| "only `ckptbpf check` loads it".into(), |fallback| fallback.reason.clone());
        Err(BpfError::NotLoaded { program: program.name(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::Kernel;

    #[test]
    fn a_kernel_that_cannot_restrict_iterators_gives_the_same_rows() {
        let mut bpf = Kernel::load().unwrap();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        bpf.track(child.id()).unwrap();
        let rows =
            |bpf: &Bpf| (bpf.processes().unwrap(), bpf.signal_actions().unwrap(), bpf.files().unwrap());
        // Until cat waits for its input, its descriptors still change.
        let read_of_0 = || {
            std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap().starts_with("0 0x0 ")
        };
        while !read_of_0() {
            std::thread::yield_now();
        }
        let restricted = rows(&bpf);
        bpf.restrictable.store(false, Ordering::Relaxed);
        assert_eq!(rows(&bpf), restricted);
        assert!(!restricted.2.is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_question_for_others_that_ends_in_a_panic_leaves_nothing_behind() {
        let bpf = Kernel::load().unwrap();
        let own = std::process::id();
        let noted = || bpf.eyes.map().iter().filter_map(Result::ok).count();
        assert_eq!(bpf.for_the_eyes_of(own, noted).unwrap(), 1);
        let asked = || bpf.for_the_eyes_of::<()>(own, || panic!("in the midst of it"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(asked)).is_err());
        assert_eq!(noted(), 0);
    }

    #[test]
    fn without_restriction_nobody_s_mappings_and_descriptors_are_gone_through() {
        let mut bpf = Kernel::load().unwrap();
        bpf.track_own(std::process::id()).unwrap();
        let has_both = |bpf: &Bpf| [Program::Vmas, Program::Descriptors].map(|program| bpf.has(program));
        // As it is here.
        let before = (has_both(&bpf), bpf.fallbacks().len());
        bpf.leave_out_long_walks();
        if bpf.is_restrictable() {
            assert_eq!((has_both(&bpf), bpf.fallbacks().len()), before);
            bpf.restrictable.store(false, Ordering::Relaxed);
            bpf.leave_out_long_walks();
        }
        assert_eq!(has_both(&bpf), [false, false]);
        assert!(matches!(bpf.vmas(), Err(BpfError::NotLoaded { .. })));
        let refused = bpf.files().unwrap_err().to_string();
        assert!(refused.contains("the whole machine's"), "{refused}");
        assert_eq!(bpf.processes().unwrap().len(), 1);
        // Said once.
        let said = bpf.fallbacks().len();
        bpf.leave_out_long_walks();
        assert_eq!(bpf.fallbacks().len(), said);
    }

    #[test]
    fn it_may_be_used_from_any_thread() {
        fn any_thread<T: Send + Sync>() {}
        any_thread::<Bpf>();
    }
}

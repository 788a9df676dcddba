//! Loads the object that is compiled in, program by program, and hands out what they report.
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    Btf, Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{self, ProgramError},
};
use aya_log::EbpfLogger;
use ckpt_common::{FileRow, LifecycleEvent, ProcessRow, SigActionsRow, TaskIds, TaskRow, VmaRow, WriteFault};
use zerocopy::FromBytes;

use super::{
    Attached, BpfError, INITIAL_PID_NAMESPACE, Lost, Offsets, PidTable, Program, chain, events,
    fields::FIELDS, iterators, own_pid_namespace, programs::Hook,
};

static OBJECT: &[u8] = include_bytes_aligned!("../../../../ckpt-ebpf/ckptbpf.bpf.o");
const BUILT_FROM: &str = include_str!("../../../../ckpt-ebpf/ckptbpf.bpf.json");

/// What the object was built from: a JSON record of the hash of its sources and of the tools' versions.
#[must_use]
pub const fn built_from() -> &'static str {
    BUILT_FROM
}

/// How large the maps are, and what is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of the ring of lifecycle events (32 each): a power of two, at least a page.
    pub lifecycle_ring: u32,
    /// Bytes of the ring of write faults (24 each): a power of two, at least a page.
    pub fault_ring: u32,
    /// How many processes can be tracked.
    pub tracked: u32,
    /// Whether programs are loaded too that are only there to be probed (`ckptbpf check`).
    pub probes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { lifecycle_ring: 256 << 10, fault_ring: 4 << 20, tracked: 16384, probes: false }
    }
}

/// A program that is not to be had here, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Which.
    pub program: Program,
    /// Why, for a person.
    pub reason: String,
}

/// The running kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Kernel {
    /// Loads everything that this kernel takes; [`Bpf::fallbacks`] has the rest.
    ///
    /// # Errors
    /// Nothing can be loaded at all: no BTF, no privilege, maps refused.
    pub fn load() -> Result<Bpf, BpfError> {
        Self::load_with(Options::default())
    }

    /// The same with other sizes.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(options: Options) -> Result<Bpf, BpfError> {
        let offsets = Offsets::of_kernel()?;
        let own_namespace = own_pid_namespace()?;
        let btf = Btf::from_sys_fs().map_err(|e| BpfError::Load { reason: chain(&e) })?;
        let mut object = load_object(options, &offsets, own_namespace, &btf)?;
        let mut fallbacks = Vec::new();
        for &program in Program::ALL.iter().filter(|p| options.probes || !p.probe_only()) {
            let refused = match offsets.missing_for(program) {
                Some(field) => Some(format!("this kernel has no {field}")),
                None => load_program(&mut object, program, &btf).err(),
            };
            fallbacks.extend(refused.map(|reason| Fallback { program, reason }));
        }
        Ok(Bpf {
            lifecycle: ring(&mut object, "LIFECYCLE")?,
            faults: ring(&mut object, "FAULTS")?,
            tracked: HashMap::try_from(take(&mut object, "TRACKED")?).map_err(|e| map_error(&e))?,
            lost: PerCpuArray::try_from(take(&mut object, "LOST")?).map_err(|e| map_error(&e))?,
            logger: EbpfLogger::init(&mut object).ok(),
            object,
            offsets,
            own_namespace,
            fallbacks,
            restrictable: std::cell::Cell::new(true),
        })
    }
}

fn load_object(options: Options, offsets: &Offsets, own_namespace: u32, btf: &Btf) -> Result<Ebpf, BpfError> {
    let absent = ckpt_common::ABSENT;
    let level = u8::try_from(log::max_level() as usize).unwrap_or(0);
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("OWN_PIDNS", &own_namespace, true)
        .override_global(aya_log::LEVEL, &level, false)
        .map_max_entries("LIFECYCLE", options.lifecycle_ring)
        .map_max_entries("FAULTS", options.fault_ring)
        .map_max_entries("TRACKED", options.tracked);
    for field in FIELDS.iter().filter(|field| field.global) {
        loader.override_global(field.name, offsets.0.get(field.name).unwrap_or(&absent), true);
    }
    loader.load(OBJECT).map_err(|e| BpfError::Load { reason: chain(&e) })
}

fn load_program(object: &mut Ebpf, program: Program, btf: &Btf) -> Result<(), String> {
    let loaded = match (object.program_mut(program.name()), program.hook()) {
        (Some(programs::Program::BtfTracePoint(p)), Hook::Tracepoint(name)) => p.load(name, btf),
        (Some(programs::Program::Iter(p)), Hook::Iterator(kind)) => p.load(kind, btf),
        (Some(programs::Program::FEntry(p)), Hook::FunctionEntry(name)) => p.load(name, btf),
        (Some(programs::Program::Lsm(p)), Hook::Security(name)) => p.load(name, btf),
        _ => return Err("the object does not hold it; run `cargo xtask build-ebpf`".into()),
    };
    loaded.map_err(|e| chain(&e))
}

fn take(object: &mut Ebpf, name: &str) -> Result<Map, BpfError> {
    object.take_map(name).ok_or_else(|| BpfError::Load { reason: format!("the object has no map {name}") })
}

fn ring(object: &mut Ebpf, name: &str) -> Result<RingBuf<MapData>, BpfError> {
    RingBuf::try_from(take(object, name)?).map_err(|e| map_error(&e))
}

fn map_error(error: &MapError) -> BpfError {
    BpfError::Load { reason: chain(error) }
}

/// The loaded programs. Dropping it unloads them; nothing of it stays in the kernel.
pub struct Bpf {
    object: Ebpf,
    lifecycle: RingBuf<MapData>,
    faults: RingBuf<MapData>,
    tracked: HashMap<MapData, u32, u32>,
    lost: PerCpuArray<MapData, u64>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    offsets: Offsets,
    own_namespace: u32,
    fallbacks: Vec<Fallback>,
    /// Whether iterators can be restricted to a process, until the kernel says otherwise.
    restrictable: std::cell::Cell<bool>,
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

    /// Begins to report write faults. Costs every fault on the node 0.1 µs: attach it for as long as it is needed.
    ///
    /// # Errors
    /// As [`Self::attach_lifecycle`].
    pub fn attach_faults(&mut self) -> Result<Attached, BpfError> {
        self.attach(&[Program::OnWriteFault])
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
        Lost::from_counters(|index| self.lost.get(&index, 0).map_or(0, |values| values.iter().sum()))
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
        let rows: Vec<TaskIds> = self.walk(Program::Pids, None)?;
        Ok(PidTable::new(&rows, self.own_namespace))
    }

    /// Every thread of the tracked processes.
    ///
    /// # Errors
    /// The iterator is not loaded or cannot be read.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, BpfError> {
        self.rows(Program::Tasks)
    }

    /// The tracked processes, one row each.
    ///
    /// # Errors
    /// The iterator is not loaded or cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessRow>, BpfError> {
        let mut rows: Vec<ProcessRow> = self.rows(Program::Processes)?;
        // When the leader has exited the others are reported too: take one that still has the memory.
        rows.sort_by_key(|row| (row.tgid, row.mm == 0, row.tid));
        rows.dedup_by_key(|row| row.tgid);
        Ok(rows)
    }

    /// The signal actions of the tracked processes, one row each.
    ///
    /// # Errors
    /// The iterator is not loaded or cannot be read.
    pub fn signal_actions(&self) -> Result<Vec<SigActionsRow>, BpfError> {
        self.rows(Program::SignalActions)
    }

    /// The mappings of the tracked processes, by process and address.
    ///
    /// # Errors
    /// The iterator is not loaded or cannot be read.
    pub fn vmas(&self) -> Result<Vec<VmaRow>, BpfError> {
        let mut rows: Vec<VmaRow> = self.rows(Program::Vmas)?;
        // A thread with descriptors of its own is walked like a process: the same mappings again.
        rows.sort_by_key(|row| (row.tgid, row.start, row.tid));
        rows.dedup_by_key(|row| (row.tgid, row.start));
        Ok(rows)
    }

    /// The open descriptors of the tracked processes, by process, table and number.
    ///
    /// # Errors
    /// The iterator is not loaded or cannot be read.
    pub fn files(&self) -> Result<Vec<FileRow>, BpfError> {
        let mut rows: Vec<FileRow> = self.rows(Program::Descriptors)?;
        rows.sort_by_key(|row| (row.tgid, row.files, row.fd, row.tid));
        rows.dedup_by_key(|row| (row.tgid, row.files, row.fd));
        Ok(rows)
    }

    /// Rows of all tracked processes: process by process, or, where the kernel cannot do that, in one walk over
    /// all of the node.
    fn rows<T: FromBytes>(&self, program: Program) -> Result<Vec<T>, BpfError> {
        let before = self.lost().reads;
        let mut all = Vec::new();
        if self.restrictable.get() {
            for (_, own) in self.tracked().into_iter().filter(|(_, own)| *own != 0) {
                match self.walk(program, Some(own)) {
                    Ok(rows) => all.extend(rows),
                    Err(BpfError::Iterator { source, .. }) if not_restrictable(&source) => {
                        self.restrictable.set(false);
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        if !self.restrictable.get() {
            all = self.walk(program, None)?;
        }
        if self.lost().reads == before { Ok(all) } else { Err(BpfError::Torn { program: program.name() }) }
    }

    fn walk<T: FromBytes>(&self, program: Program, process: Option<u32>) -> Result<Vec<T>, BpfError> {
        self.loaded(program)?;
        let name = program.name();
        let failed = |source| BpfError::Iterator { program: name, source };
        let not_loaded = |e: &ProgramError| BpfError::NotLoaded { program: name, reason: chain(e) };
        let Some(programs::Program::Iter(p)) = self.object.program(name) else {
            return Err(BpfError::NotLoaded { program: name, reason: "not an iterator".into() });
        };
        let fd = p.fd().map_err(|e| not_loaded(&e))?;
        iterators::rows(fd.as_fd(), process).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => BpfError::Torn { program: name },
            _ => failed(e),
        })
    }

    fn loaded(&self, program: Program) -> Result<(), BpfError> {
        match self.fallbacks.iter().find(|fallback| fallback.program == program) {
            Some(fallback) => {
                Err(BpfError::NotLoaded { program: program.name(), reason: fallback.reason.clone() })
            }
            None => Ok(()),
        }
    }
}

fn not_restrictable(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP))
}

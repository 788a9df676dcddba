//! Loads the object that is compiled in, program by program, and hands out what they report.
use std::sync::Mutex;

use aya::{
    Btf, Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs,
};
use aya_log::EbpfLogger;

use super::{
    Bpf, BpfError, Offsets, Program, chain, fields::FIELDS, handle::Eyes, own_pid_namespace, programs::Hook,
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
        Self::load_object(OBJECT, options)
    }

    /// The same from another object than the one compiled in: `cargo xtask build-ebpf --check` tries a rebuilt one.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_object(object: &[u8], options: Options) -> Result<Bpf, BpfError> {
        let offsets = Offsets::of_kernel()?;
        let own_namespace = own_pid_namespace()?;
        let btf = Btf::from_sys_fs().map_err(|e| BpfError::Load { reason: chain(&e) })?;
        let mut object = create(object, options, &offsets, own_namespace, &btf)?;
        let (mut loaded, mut fallbacks) = (Vec::new(), Vec::new());
        for &program in Program::ALL.iter().filter(|p| options.probes || !p.probe_only()) {
            let result = match offsets.missing_for(program) {
                Some(field) => Err(format!("this kernel has no {field}")),
                None => load_program(&mut object, program, &btf),
            };
            match result {
                Ok(()) => loaded.push(program),
                Err(reason) => fallbacks.push(Fallback { program, reason }),
            }
        }
        Ok(Bpf {
            lifecycle: ring(&mut object, "LIFECYCLE")?,
            faults: ring(&mut object, "FAULTS")?,
            tracked: HashMap::try_from(take(&mut object, "TRACKED")?).map_err(|e| map_error(&e))?,
            eyes: Eyes(Mutex::new(HashMap::try_from(take(&mut object, "EYES")?).map_err(|e| map_error(&e))?)),
            lost: PerCpuArray::try_from(take(&mut object, "LOST")?).map_err(|e| map_error(&e))?,
            logger: EbpfLogger::init(&mut object).ok(),
            object,
            offsets,
            own_namespace,
            loaded,
            fallbacks,
            restrictable: true.into(),
        })
    }
}

fn create(
    bytes: &[u8],
    options: Options,
    offsets: &Offsets,
    own_namespace: u32,
    btf: &Btf,
) -> Result<Ebpf, BpfError> {
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
    loader.load(bytes).map_err(|e| BpfError::Load { reason: chain(&e) })
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

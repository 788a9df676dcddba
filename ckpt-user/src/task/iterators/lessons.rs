//! What this kernel's words mean, learnt from ourselves and from children of ours.

use super::programs::has_words;
use crate::memory::flags::{Names, Word};
use crate::memory::vdso;
use crate::memory::vma::{self, Raw};
use crate::sys::bpf::{Bpf, BpfError, VmaRow};
use crate::sys::specimens::Specimens;
use crate::task::learnt::{self, Learnt};
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use prost::Message;
use std::io;

/// All that it takes to understand rows, but for where the kernel's functions are.
#[derive(Debug, Clone)]
pub struct Lessons {
    pub learnt: Learnt,
    /// Of the flags of mappings.
    pub names: Names,
}

/// As one process tells them another.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Told {
    #[prost(message, required, tag = "1")]
    bits: learnt::Bits,
    /// [`Names::told`].
    #[prost(string, repeated, tag = "2")]
    names: Vec<String>,
}

impl Lessons {
    /// # Errors
    /// Our own words cannot be read.
    pub fn learnt(bpf: &mut Bpf) -> Result<Self, BpfError> {
        let names = flag_names(bpf).unwrap_or_else(|e| {
            log::warn!("the flags of mappings are learnt as they are met: {e}");
            Names::default()
        });
        Ok(Self { learnt: Learnt::new(bpf)?, names })
    }

    /// For another process on the same machine.
    pub fn to_bytes(&self) -> Vec<u8> {
        Told { bits: self.learnt.bits(), names: self.names.told() }.encode_to_vec()
    }

    /// None where that is not what [`Self::to_bytes`] makes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let Told { bits, names } = Told::decode(bytes).ok()?;
        Some(Self { learnt: Learnt::told(bits)?, names: Names::of_told(&names)? })
    }
}

/// What the flags of mappings are called, as far as our own can tell.
fn flag_names(bpf: &mut Bpf) -> Result<Names, BpfError> {
    let mut names = Names::default();
    if has_words(bpf) {
        let failed = |source| BpfError::Proc { path: "/proc/self/smaps", source };
        let specimens = Specimens::new().map_err(failed)?;
        let own = Pid::this();
        let host = bpf.track_own(own.as_raw() as u32)?;
        let words: Vec<Word> = bpf.vmas()?.iter().filter(|row| row.tgid == host).map(word).collect();
        let mut raws = raws(own, "smaps").map_err(failed)?;
        let ours = specimens.range();
        // What is not among these may have changed in between.
        raws.retain(|r| vdso::kind(&r.name).is_some() || (ours.start <= r.start && r.end <= ours.end));
        names.learn_from(&raws, &words);
        bpf.untrack(host)?;
    }
    Ok(names)
}

/// A mapping's flags.
pub fn word(row: &VmaRow) -> Word {
    Word { start: row.start, end: row.end, flags: row.flags }
}

/// The mappings in the file `name`, without the one that lies beyond user addresses.
///
/// # Errors
/// The file cannot be read.
pub fn raws(pid: Pid, name: &str) -> io::Result<Vec<Raw>> {
    let mut raws = vma::parse(&ProcDir::process(pid).text(name)?)?;
    raws.retain(|raw| raw.name != "[vsyscall]");
    Ok(raws)
}

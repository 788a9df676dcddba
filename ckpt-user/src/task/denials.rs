//! What a thread or process has been denied: the time-stamp counter, CPUID, new executable memory, huge pages.
//!
//! Only the thread itself may ask (prctl(2), arch_prctl(2)). Bits of the kernel's own words, which
//! [`super::learnt`] knows, tell whether asking can give anything but the default.

use super::control::prctl;
use crate::sys::remote::Remote;
use std::io;

const PR_SET_MDWE: u64 = 65;
pub const PR_GET_MDWE: u64 = 66;
const ARCH_SET_CPUID: u64 = 0x1012;
pub const ARCH_GET_CPUID: u64 = 0x1011;
/// `PR_TSC_SIGSEGV`.
const SIGSEGV: u32 = 2;

/// `PR_SPEC_L1D_FLUSH`, and `PR_SPEC_ENABLE`: the cache is emptied at each switch to another thread.
pub const L1D: u64 = 2;
const ENABLED: i64 = 2;

/// Of one thread.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Instructions {
    /// PR_SET_TSC with PR_TSC_SIGSEGV.
    #[prost(bool, tag = "1")]
    pub no_counter: bool,
    /// ARCH_SET_CPUID with 0.
    #[prost(bool, tag = "2")]
    pub no_cpuid: bool,
    /// PR_SET_SPECULATION_CTRL with PR_SPEC_L1D_FLUSH: what it leaves in the first cache is denied to others.
    #[prost(bool, tag = "3")]
    pub flush_cache: bool,
}

impl Instructions {
    /// From what PR_GET_TSC has written, and ARCH_GET_CPUID and PR_GET_SPECULATION_CTRL have returned.
    pub fn read(counter: u32, cpuid: i64, cache: i64) -> Option<Self> {
        let flush_cache = cache > 0 && cache & ENABLED != 0;
        let found = Self { no_counter: counter == SIGSEGV, no_cpuid: cpuid == 0, flush_cache };
        (found != Self::default()).then_some(found)
    }
}

/// Of a process.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Memory {
    /// PR_SET_MDWE: PR_MDWE_* bits.
    #[prost(uint32, tag = "1")]
    pub executable: u32,
    /// As PR_GET_THP_DISABLE gives it: 0, 1, or 3 where only advised ranges have huge pages.
    #[prost(uint32, tag = "2")]
    pub huge_pages: u32,
}

impl Memory {
    /// From what PR_GET_MDWE and PR_GET_THP_DISABLE have returned; errors of kernels without them are nothing denied.
    pub fn read(executable: i64, huge_pages: i64) -> Option<Self> {
        let bits = |result: i64| u32::try_from(result).unwrap_or(0);
        let found = Self { executable: bits(executable), huge_pages: bits(huge_pages) };
        (found != Self::default()).then_some(found)
    }
}

/// Denies the calling skeleton thread what was denied.
pub fn rebuild_thread(denied: &Instructions, remote: &mut Remote) -> io::Result<()> {
    if denied.no_counter {
        prctl(remote, "PR_SET_TSC", [libc::PR_SET_TSC as u64, u64::from(SIGSEGV), 0])?;
    }
    if denied.no_cpuid {
        remote
            .call(libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0])
            .map_err(|e| io::Error::new(e.kind(), format!("ARCH_SET_CPUID: {e}")))?;
    }
    if denied.flush_cache {
        let enable = [libc::PR_SET_SPECULATION_CTRL as u64, L1D, ENABLED as u64];
        prctl(remote, "PR_SPEC_L1D_FLUSH", enable)?;
    }
    Ok(())
}

/// Denies the process what was denied. It has all of its mappings, and its children have been made.
pub fn rebuild_process(denied: &Memory, remote: &mut Remote) -> io::Result<()> {
    /// Disabled; whatever else is set says for which ranges.
    const DISABLED: u32 = 1;
    if denied.huge_pages & !DISABLED != 0 {
        let flags = u64::from(denied.huge_pages & !DISABLED);
        prctl(remote, "PR_SET_THP_DISABLE", [libc::PR_SET_THP_DISABLE as u64, 1, flags])?;
    }
    if denied.executable != 0 {
        prctl(remote, "PR_SET_MDWE", [PR_SET_MDWE, u64::from(denied.executable), 0])?;
    }
    Ok(())
}

//! Protection keys (pkeys(7)): which of them a process has, and which of its mappings.
//!
//! What a thread may do with them (PKRU) is among its registers. Which of them are allocated is told by nothing but the
//! kernel's own structures, and pkey_mprotect(2) to the process itself: it takes no others. Memory that may only be executed
//! has a key that the kernel has taken for that, and which no call takes (`execute_only_pkey` of arch/x86/mm/pkeys.c).

use super::vma::{EXECUTE_ONLY, Vma};
use crate::record::Process;
use crate::sys::inject::Call;
use crate::sys::regs;
use crate::sys::remote::Remote;
use std::io;

/// Keys of a process, the first of which is that of all memory.
pub const COUNT: u32 = 16;

/// Nothing can be mapped there.
const NOWHERE: u64 = 0xffff_ffff_ffff_e000;

/// The keys of a process.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Keys {
    /// Bit n for key n of pkey_alloc(2).
    #[prost(uint32, tag = "1")]
    pub allocated: u32,
    /// That of memory that may only be executed; 0: there has been none yet.
    #[prost(uint32, tag = "2")]
    pub execute_only: u32,
}

impl Keys {
    /// From the kernel's words, `mm_context_t`: 0 where this processor has no keys.
    pub fn read(allocation_map: u32, execute_only: i32) -> Option<Self> {
        const FIRST: u32 = 1;
        let execute_only = u32::try_from(execute_only).unwrap_or(0) % COUNT;
        let allocated = allocation_map & !FIRST & !(1 << execute_only);
        (allocation_map != 0).then_some(Self { allocated, execute_only })
    }

    /// Whether a process may have these.
    pub fn are_some(&self) -> bool {
        let own = self.allocated & !1 & ((1 << COUNT) - 1);
        own == self.allocated && self.execute_only < COUNT && own >> self.execute_only & 1 == 0
    }

    /// From what [`calls`] have returned; the kernel's own is told by a mapping that has it.
    ///
    /// # Errors
    /// A call has returned what it never should.
    pub fn found(results: &[i64], mappings: &[Vma]) -> io::Result<Self> {
        const ALLOCATED: i64 = -(libc::ENOMEM as i64);
        const FREE: i64 = -(libc::EINVAL as i64);
        if let Some(&other) = results.iter().find(|&&result| result != ALLOCATED && result != FREE) {
            return Err(io::Error::from_raw_os_error(i32::try_from(-other).unwrap_or(libc::EIO)));
        }
        let is_allocated = |result: &i64| *result == ALLOCATED;
        let allocated =
            (1..).zip(results).filter(|(_, r)| is_allocated(r)).fold(0, |all, (key, _)| all | 1 << key);
        let mut keys = mappings.iter().filter(|v| v.protection == EXECUTE_ONLY).map(|v| v.protection_key);
        let execute_only = keys.find(|key| *key != 0 && allocated >> key & 1 == 0).unwrap_or(0);
        Ok(Self { allocated, execute_only })
    }
}

/// Whether this processor and kernel have keys.
pub fn are_here() -> bool {
    regs::has_protection_keys()
}

/// One call for each key but the first, which does nothing: EINVAL for one that is not allocated, ENOMEM for one that is
/// (`do_mprotect_pkey` of mm/mprotect.c).
pub fn calls() -> impl Iterator<Item = Call> {
    (1..u64::from(COUNT)).map(|key| Call::new(libc::SYS_pkey_mprotect, &[NOWHERE, 4096, 0, key]))
}

/// Up to which key all have to be allocated for a while: the kernel gives the lowest one that is free.
fn highest(record: &Process) -> u32 {
    let keys = record.protection_keys.unwrap_or_default();
    let used = record.mappings.iter().map(|v| v.protection_key).max().unwrap_or(0);
    used.max(keys.execute_only).max(u32::BITS - 1 - (keys.allocated | 1).leading_zeros())
}

/// Allocates them. Before there are any mappings: memory that may only be executed would take one.
pub fn allocate(record: &Process, remote: &mut Remote) -> io::Result<()> {
    let keys = record.protection_keys.unwrap_or_default();
    for key in 1..=highest(record) {
        if key == keys.execute_only {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            let page = [0, 4096, u64::from(EXECUTE_ONLY), flags, u64::MAX, 0];
            let at = remote.call(libc::SYS_mmap, &page)?;
            remote.call(libc::SYS_munmap, &[at, 4096])?;
        } else {
            let got = remote.call(libc::SYS_pkey_alloc, &[0, 0])?;
            if got != u64::from(key) {
                return Err(io::Error::other(format!("key {key} is not to be had, but {got}")));
            }
        }
    }
    Ok(())
}

/// Gives the mappings their keys, and memory that may only be executed its protection; then lets go of keys that were not
/// allocated any more. The kernel has no further business in that memory but sealing it.
pub fn protect(record: &Process, remote: &mut Remote) -> io::Result<()> {
    let keys = record.protection_keys.unwrap_or_default();
    let protect = |v: &Vma| {
        let range = [v.start, v.end - v.start, u64::from(v.protection)];
        let is_kernels = v.protection_key == keys.execute_only && v.protection_key != 0;
        if v.protection == EXECUTE_ONLY && (is_kernels || !are_here()) {
            Call::new(libc::SYS_mprotect, &range)
        } else {
            Call::new(libc::SYS_pkey_mprotect, &[range[0], range[1], range[2], u64::from(v.protection_key)])
        }
    };
    let changed = |v: &&Vma| v.protection_key != 0 || v.protection == EXECUTE_ONLY;
    let mut calls: Vec<Call> = record.mappings.iter().filter(changed).map(protect).collect();
    let is_free = |key: &u32| *key != keys.execute_only && keys.allocated >> key & 1 == 0;
    let free = |key: u32| Call::new(libc::SYS_pkey_free, &[u64::from(key)]);
    calls.extend((1..=highest(record)).filter(is_free).map(free));
    remote.run_all(&calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(protection: u32, protection_key: u32) -> Vma {
        Vma { protection, protection_key, ..Vma::default() }
    }

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(Keys::read(0, 0), None, "a processor without keys");
        assert_eq!(Keys::read(1, -1), Some(Keys::default()));
        assert_eq!(Keys::read(0b1011, -1), Some(Keys { allocated: 0b1010, execute_only: 0 }));
        assert_eq!(Keys::read(0b1011, 3), Some(Keys { allocated: 0b10, execute_only: 3 }));
    }

    #[test]
    fn what_calls_have_found_is_the_same() {
        let (no, yes) = (-i64::from(libc::EINVAL), -i64::from(libc::ENOMEM));
        let mappings = [vma(3, 0), vma(EXECUTE_ONLY, 2), vma(EXECUTE_ONLY, 3), vma(3, 5)];
        let found = Keys::found(&[no, yes, no, no, no], &mappings).unwrap();
        assert_eq!(found, Keys { allocated: 0b100, execute_only: 3 });
        assert_eq!(Keys::found(&[no; 15], &[vma(3, 0), vma(3, 5)]).unwrap(), Keys::default());
        assert!(
            Keys::found(&[no, 0], &[]).is_err() && Keys::found(&[no, -i64::from(libc::EPERM)], &[]).is_err()
        );
        assert_eq!(calls().count(), 15);
    }

    #[test]
    fn keys_are_allocated_up_to_the_highest_that_anything_has() {
        let record = |allocated, execute_only, key| Process {
            protection_keys: Some(Keys { allocated, execute_only }),
            mappings: vec![vma(3, key)],
            ..Process::default()
        };
        assert_eq!(highest(&Process::default()), 0);
        assert_eq!(highest(&record(0b1010, 0, 0)), 3);
        assert_eq!(highest(&record(0b10, 7, 0)), 7);
        assert_eq!(highest(&record(0b10, 2, 9)), 9);
        assert_eq!(highest(&record(1 << 15, 2, 9)), 15);
    }
}

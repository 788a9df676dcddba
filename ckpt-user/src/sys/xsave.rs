//! The XSAVE area of this processor, as far as its kernel has enabled it: Intel SDM volume 1, chapter 13; CPUID leaf 13.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

const LEAF: u32 = 13;
/// What FXSAVE writes: x87 and SSE.
pub const LEGACY: usize = 512;

/// Number, offset and size in bytes of each component that is not part of [`LEGACY`], in an area that is not compacted.
pub fn components() -> Vec<(u32, u32, u32)> {
    let enabled = enabled();
    let place = |number| {
        let leaf = __cpuid_count(LEAF, number);
        (number, leaf.ebx, leaf.eax)
    };
    (2..63).filter(|number| enabled >> number & 1 != 0).map(place).collect()
}

/// Of the area that ptrace(2) reads and writes, in bytes; [`LEGACY`] on a processor without XSAVE.
pub fn size() -> usize {
    if enabled() == 0 { LEGACY } else { __cpuid_count(LEAF, 0).ebx as usize }
}

/// The room that a frame of a signal handler takes at most, in bytes; 0 of a kernel before 5.14, which does not tell.
pub fn frame_size() -> u64 {
    const AT_MINSIGSTKSZ: libc::c_ulong = 51;
    // SAFETY: reads a number that the kernel has given this process.
    unsafe { libc::getauxval(AT_MINSIGSTKSZ) }
}

/// XCR0; 0 where there is no such register.
fn enabled() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    // SAFETY: the kernel has enabled XSAVE, and with it XGETBV (OSXSAVE); register 0 is there whenever it is.
    unsafe { _xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_lie_one_after_the_other_in_the_area() {
        let end = components().iter().map(|(_, offset, size)| offset + size).max();
        assert!(end.is_none_or(|end| end as usize <= size()), "{:?} {}", components(), size());
        assert!(components().iter().all(|(_, offset, size)| *offset >= 576 && *size > 0));
    }
}

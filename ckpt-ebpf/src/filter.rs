//! Who is watched, and reading what the kernel passes.
use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str}};
use ckpt_common::lost;
use zerocopy::FromBytes;

use crate::maps::{TRACKED, count_lost};

/// Host process id and thread id of the running task.
#[inline(always)]
pub fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// The process id in the loader's pid namespace of a tracked process, `None` if it is not tracked.
#[inline(always)]
pub fn tracked(tgid: u32) -> Option<u32> {
    // SAFETY: map values of 4 bytes are read whole; an entry that is deleted meanwhile stays allocated (RCU).
    TRACKED.get_ptr(&tgid).map(|own| unsafe { *own })
}

/// A field of a kernel structure, read through a pointer whose type the verifier knows.
///
/// # Safety
/// `base` is such a pointer, and `offset`, a constant to the verifier, is a field of `T`'s size in it.
#[inline(always)]
pub unsafe fn field<T: Copy>(base: *const c_void, offset: u32) -> T {
    // SAFETY: the verifier proves the access or turns it into a fault-tolerant one; volatile keeps it one load.
    unsafe { base.byte_add(offset as usize).cast::<T>().read_volatile() }
}

/// Copies a field from behind a pointer that the verifier does not know, or one that is not a scalar; `None` if the
/// address cannot be read, which is counted.
///
/// # Safety
/// `base + offset` is a kernel address (a wrong one gives `None`).
#[inline(always)]
pub unsafe fn copy<T: FromBytes>(to: &mut T, base: *const c_void, offset: u32) -> Option<()> {
    // SAFETY: the caller's promise.
    if unsafe { try_copy(to, base, offset) } != 0 {
        count_lost(lost::READS);
        return None;
    }
    Some(())
}

/// The same without a question asked: 0 if it could be read.
///
/// # Safety
/// As for [`copy`].
#[inline(always)]
pub unsafe fn try_copy<T: FromBytes>(to: &mut T, base: *const c_void, offset: u32) -> i64 {
    // SAFETY: `to` is `size_of::<T>()` writable bytes of any pattern; the helper checks the source.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(to).cast(),
            size_of::<T>() as u32,
            base.wrapping_byte_add(offset as usize).cast(),
        )
    }
}

/// The same, by value: for small ones.
///
/// # Safety
/// As for [`copy`].
#[inline(always)]
pub unsafe fn read<T: FromBytes>(base: *const c_void, offset: u32) -> Option<T> {
    let mut value = T::new_zeroed();
    // SAFETY: the caller's promise.
    unsafe { copy(&mut value, base, offset) }?;
    Some(value)
}

/// Copies a string of the kernel, ended by a zero; what does not fit is cut off.
///
/// # Safety
/// `base` is a kernel address (a wrong one gives `None`).
#[inline(always)]
pub unsafe fn string<const N: usize>(to: &mut [u8; N], base: *const c_void) -> Option<()> {
    // SAFETY: `to` is `N` writable bytes; the helper checks the source.
    if unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), N as u32, base.cast()) } < 0 {
        count_lost(lost::READS);
        return None;
    }
    Some(())
}

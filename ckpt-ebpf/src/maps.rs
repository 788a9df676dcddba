//! The maps. User space may override the entries of each before it loads the object.
use aya_ebpf::{
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use ckpt_common::lost;

/// Host process id → process id in the loader's pid namespace (0: not visible there).
#[map]
pub static TRACKED: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

/// Host thread id of who reads an iterator for another process's eyes → host process id of that. A daemon has 512 threads for that.
#[map]
pub static EYES: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// `LifecycleEvent`s.
#[map]
pub static LIFECYCLE: RingBuf = RingBuf::with_byte_size(256 << 10, 0);

/// `WriteFault`s.
#[map]
pub static FAULTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// What could not be reported, by the indices of `ckpt_common::lost`.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(lost::COUNT, 0);

/// Counts one thing that could not be reported.
#[inline(always)]
pub fn count_lost(index: u32) {
    if let Some(counter) = LOST.get_ptr_mut(index) {
        // SAFETY: this CPU's value, 8 aligned bytes. A program that interrupts another one between load and store
        // can make it miss one count (the target has no atomic add in Rust): more than 0 still means "lost".
        unsafe { *counter += 1 };
    }
}

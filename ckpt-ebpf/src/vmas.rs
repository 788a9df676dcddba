//! Iterator over the mappings of tracked processes.
use core::ffi::c_void;

use ckpt_common::{ABSENT, VmaRow};

use crate::{
    filter::{field, read},
    offsets::*,
    tasks::tracked_task,
};

/// `TMPFS_MAGIC` (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;

/// `struct bpf_iter__task_vma`.
#[repr(C)]
struct Context {
    meta: *const c_void,
    task: *const c_void,
    vma: *const c_void,
}

/// One `VmaRow` a mapping, in ascending order, once for each thread that does not share its leader's descriptors.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
pub fn iter_vmas(ctx: *mut c_void) -> i32 {
    // SAFETY: this program's context begins as that of an iterator over tasks.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    let task = told.task;
    // SAFETY: the third field of this program's context.
    let vma: *const c_void = unsafe { (&raw const (*ctx.cast::<Context>()).vma).read_volatile() };
    if vma.is_null() {
        return 0;
    }
    // SAFETY: a vm_area_struct, held by the iterator, and the offset of a word in it.
    let mm = unsafe { read::<u64>(vma, VMA_MM.load()) }.unwrap_or(0);
    if !told.has_memory(mm) {
        return 0;
    }
    // SAFETY: a task_struct and a vm_area_struct, held by the iterator, and offsets of words in them.
    let mut row = unsafe {
        VmaRow {
            tgid: field(task, TASK_TGID.load()),
            tid: field(task, TASK_PID.load()),
            start: field(vma, VMA_START.load()),
            end: field(vma, VMA_END.load()),
            flags: field(vma, VMA_FLAGS.load()),
            page_offset: field(vma, VMA_PGOFF.load()),
            file: 0,
            inode: 0,
            device: 0,
            home_node: -1,
            policy: 0,
            shared_policies: 0,
        }
    };
    // SAFETY: as above; a mapping keeps its policy.
    unsafe {
        if VMA_POLICY.load() != ABSENT {
            let policy: *const c_void = field(vma, VMA_POLICY.load());
            row.policy = policy as u64;
            if !policy.is_null() && POLICY_HOME_NODE.load() != ABSENT {
                row.home_node = field(policy, POLICY_HOME_NODE.load());
            }
        }
    }
    // SAFETY: as above; a mapping keeps its file, a file its inode and super block.
    unsafe {
        let file: *const c_void = field(vma, VMA_FILE.load());
        if !file.is_null() {
            row.file = file as u64;
            let inode: *const c_void = field(file, FILE_INODE.load());
            (row.inode, row.device) = inode_of(inode);
            row.shared_policies = shared_policies(inode).unwrap_or(0);
        }
    }
    rows.write(&row);
    told.end()
}

/// Key of the memory policies that an inode of tmpfs has for ranges of its own.
///
/// # Safety
/// `inode` is a struct inode that its file holds.
#[inline(always)]
unsafe fn shared_policies(inode: *const c_void) -> Option<u64> {
    let places = [SB_MAGIC.load(), SHMEM_INODE.load(), SHMEM_POLICIES.load()];
    if places.contains(&ABSENT) {
        return None;
    }
    let [magic, inside, policies] = places;
    // SAFETY: the caller's promise; an inode of that file system is part of a shmem_inode_info, read with checks.
    unsafe {
        let super_block: *const c_void = field(inode, INODE_SB.load());
        if field::<u64>(super_block, magic) != TMPFS {
            return None;
        }
        read(inode.wrapping_byte_sub(inside as usize), policies)
    }
}

/// Number and device of an inode.
///
/// # Safety
/// `inode` is a struct inode that its file holds.
#[inline(always)]
pub unsafe fn inode_of(inode: *const c_void) -> (u64, u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let super_block: *const c_void = field(inode, INODE_SB.load());
        (field(inode, INODE_INO.load()), field(super_block, SB_DEV.load()))
    }
}

//! Iterator over the mappings of tracked processes.
use core::ffi::c_void;

use ckpt_common::VmaRow;

use crate::{filter::field, offsets::*, tasks::tracked_task};

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
    let Some((rows, task)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    // SAFETY: the third field of this program's context.
    let vma: *const c_void = unsafe { (&raw const (*ctx.cast::<Context>()).vma).read_volatile() };
    if vma.is_null() {
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
            reserved: 0,
        }
    };
    // SAFETY: as above; a mapping keeps its file, a file its inode and super block.
    unsafe {
        let file: *const c_void = field(vma, VMA_FILE.load());
        if !file.is_null() {
            row.file = file as u64;
            (row.inode, row.device) = inode_of(field(file, FILE_INODE.load()));
        }
    }
    rows.write(&row);
    0
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

//! Iterator over the open descriptors of tracked processes.
use core::ffi::c_void;

use ckpt_common::{ABSENT, FileRow, TOLD};

use crate::{
    filter::{field, read, try_copy},
    offsets::*,
    tasks::tracked_task,
    vmas::inode_of,
};

/// `ANON_INODE_FS_MAGIC` of linux/magic.h.
const ANONYMOUS: u64 = 0x0904_1934;

/// `struct bpf_iter__task_file`.
#[repr(C)]
struct Context {
    meta: *const c_void,
    task: *const c_void,
    fd: u32,
    file: *const c_void,
}

/// One `FileRow` a descriptor, in ascending order, once for each descriptor table of a process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn iter_descriptors(ctx: *mut c_void) -> i32 {
    // SAFETY: this program's context begins as that of an iterator over tasks.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    let task = told.task;
    let context = ctx.cast::<Context>();
    // SAFETY: the third and fourth field of this program's context.
    let (fd, file) =
        unsafe { ((&raw const (*context).fd).read_volatile(), (&raw const (*context).file).read_volatile()) };
    if file.is_null() {
        return 0;
    }
    // SAFETY: a task_struct and a struct file, held by the iterator, and offsets in them.
    let row = unsafe {
        let files: *const c_void = field(task, TASK_FILES.load());
        let inode: *const c_void = field(file, FILE_INODE.load());
        let (number, device) = inode_of(inode);
        close_on_exec(files, fd).map(|close_on_exec| FileRow {
            tgid: field(task, TASK_TGID.load()),
            tid: field(task, TASK_PID.load()),
            fd,
            flags: field(file, FILE_FLAGS.load()),
            files: files as u64,
            file: file as u64,
            position: field(file, FILE_POS.load()),
            inode: number,
            device,
            mode: u32::from(field::<u16>(inode, INODE_MODE.load())),
            close_on_exec,
            eventfd: eventfd(file, inode).unwrap_or(0),
        })
    };
    row.and_then(|row| rows.write(&row));
    told.end()
}

/// The flags of an eventfd (fs/eventfd.c), which fdinfo does not show before Linux 6.5. What else lives on the same file system
/// has something else in that place; it is read with checks, and user space knows which is which.
#[inline(always)]
unsafe fn eventfd(file: *const c_void, inode: *const c_void) -> Option<u32> {
    let places = [SB_MAGIC.load(), FILE_PRIVATE.load(), EVENTFD_FLAGS.load()];
    if places.contains(&ABSENT) {
        return None;
    }
    let [magic, private, flags] = places;
    let mut found = 0;
    // SAFETY: the caller's promise.
    let failed = unsafe {
        let super_block: *const c_void = field(inode, INODE_SB.load());
        if field::<u64>(super_block, magic) != ANONYMOUS {
            return None;
        }
        let context: *const c_void = field(file, private);
        try_copy::<u32>(&mut found, context, flags)
    };
    (failed == 0).then_some(found | TOLD)
}

/// Bit `fd` of `files->fdt->close_on_exec`.
#[inline(always)]
unsafe fn close_on_exec(files: *const c_void, fd: u32) -> Option<u32> {
    // SAFETY: read with checks all the way; the table may be replaced meanwhile, then the old one is read.
    unsafe {
        let table = read::<u64>(files, FILES_FDT.load())? as *const c_void;
        if fd >= read::<u32>(table, FDT_MAX_FDS.load())? {
            return Some(0);
        }
        let bits = read::<u64>(table, FDT_CLOSE_ON_EXEC.load())? as *const c_void;
        let byte: u8 = read(bits, fd / 8)?;
        Some(u32::from(byte >> (fd % 8)) & 1)
    }
}

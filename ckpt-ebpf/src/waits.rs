//! Iterator over threads that wait in a system call which cannot be continued by the kernel itself, with their kernel
//! stacks: the timer of the wait is in there, and nowhere else is it known when the wait ends.
use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use ckpt_common::{TIMED_WAITS, WAIT_STACK};
use zerocopy::{Immutable, IntoBytes};

use crate::{
    filter::{copy, field},
    iterator::Rows,
    offsets::*,
    tasks::tracked_task,
};

/// The stack is copied in pieces of this many bytes.
const PIECE: usize = 256;
/// `pt_regs.orig_ax` on x86-64.
const ORIG_AX: u32 = 15 * 8;
/// `TASK_INTERRUPTIBLE`.
const INTERRUPTIBLE: u32 = 1;

/// Every thread of a tracked process that sleeps in one of [`TIMED_WAITS`]: a `WaitRow`, written in pieces.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_waits(ctx: *mut c_void) -> i32 {
    // SAFETY: as in `tasks::iter_tasks`.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    // SAFETY: as in `tasks::iter_tasks`.
    unsafe { write_wait(rows, told.task) };
    told.end()
}

#[inline(always)]
unsafe fn write_wait(rows: Rows, task: *const c_void) -> Option<()> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Head {
        tid: u32,
        tgid: u32,
        task: u64,
        number: u64,
        switches: u64,
    }
    // SAFETY: a task_struct, and offsets of fields of these sizes.
    let state: u32 = unsafe { field(task, TASK_STATE.load()) };
    if state & INTERRUPTIBLE == 0 {
        return None;
    }
    // SAFETY: the helper takes a task_struct and gives its saved registers.
    let number: u64 = unsafe {
        let registers = bpf_task_pt_regs(task.cast_mut().cast()) as *const c_void;
        if registers.is_null() {
            return None;
        }
        field(registers, ORIG_AX)
    };
    if !TIMED_WAITS.contains(&number) {
        return None;
    }
    // SAFETY: as above.
    let stack = unsafe {
        rows.write(&Head {
            tid: field(task, TASK_PID.load()),
            tgid: field(task, TASK_TGID.load()),
            task: task as u64,
            number,
            switches: field(task, TASK_NVCSW.load()),
        })?;
        field::<*const c_void>(task, TASK_STACK.load())
    };
    let mut bytes = [0u8; PIECE];
    for piece in 0..WAIT_STACK / PIECE {
        // SAFETY: inside the task's stack; the helper checks.
        unsafe { copy(&mut bytes, stack, (piece * PIECE) as u32) }?;
        rows.write(&bytes)?;
    }
    Some(())
}

//! What the iterator programs have in common: their contexts and how a row is written.
//!
//! aya-ebpf has no macro for iterators; a function in the section `iter/NAME` is one (kernel: `bpf_iter_reg_target`).
//! A row that does not fit the buffer is discarded by the kernel and made again in the next one, so a row may be
//! written in pieces.
use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;
use zerocopy::{Immutable, IntoBytes};

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
    session_id: u64,
    seq_num: u64,
}

/// The context of every iterator over tasks: `bpf_iter__task`, and the head of those that go through a task's objects.
#[repr(C)]
struct TaskContext {
    meta: *const Meta,
    task: *const c_void,
}

/// The stream that rows go to.
#[derive(Clone, Copy)]
pub struct Rows(*mut c_void);

impl Rows {
    /// Writes one row or a piece of one; `None` if the buffer is full, which makes the kernel try again.
    #[inline(always)]
    pub fn write<T: IntoBytes + Immutable>(self, row: &T) -> Option<()> {
        // SAFETY: `self.0` is the seq_file of this context, and `row` is `size_of::<T>()` initialised bytes.
        let written = unsafe {
            bpf_seq_write(self.0.cast(), core::ptr::from_ref(row).cast_mut().cast(), size_of::<T>() as u32)
        };
        (written == 0).then_some(())
    }
}

/// The stream and the task of an iterator's context; `None` after the last one.
///
/// # Safety
/// `context` is the context of an iterator over tasks.
#[inline(always)]
pub unsafe fn task_of(context: *mut c_void) -> Option<(Rows, *const c_void)> {
    let context = context.cast::<TaskContext>();
    // SAFETY: both are fields of the context, `meta` is never null (kernel: bpf_iter_run_prog); volatile loads stay
    // the fixed-size context accesses that the verifier demands.
    let (meta, task) = unsafe {
        ((&raw const (*context).meta).read_volatile(), (&raw const (*context).task).read_volatile())
    };
    if task.is_null() {
        return None;
    }
    // SAFETY: as above.
    Some((Rows(unsafe { (&raw const (*meta).seq).read_volatile() }), task))
}

//! Who is watched, and reading what the kernel passes.
use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str}};
use ckpt_common::lost;
use zerocopy::FromBytes;

use crate::{
    maps::{EYES, TRACKED, count_lost},
    offsets::{
        TASK_EXECS, TASK_FILES, TASK_MM, TASK_PARENT, TASK_PTRACE, TASK_SIGHAND, TASK_TGID, TASK_TRACER_CRED,
    },
};

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

/// A task that may be told of.
///
/// For the loader's own eyes each of a tracked process may. For another process's only those that it traces, which is the
/// kernel's own word that it may run anything in them. That holds before the first byte of a row is read and after the last,
/// and what is read through the task is the task's own: it has executed nothing in between, nor ended.
#[derive(Clone, Copy)]
pub struct Told {
    pub task: *const c_void,
    same: Same,
}

/// What a task has until it executes something or ends, each of which is taken from it before it is freed, and what its tracer
/// has attached to it with; all 0 for the loader's own eyes.
#[derive(Clone, Copy, Default)]
struct Same {
    /// 1 where it is told of for another process's eyes.
    for_others: u64,
    tracing: u64,
    execs: u64,
    mm: u64,
    files: u64,
    sighand: u64,
}

impl Same {
    /// One question and not six, each of which would double what the verifier has to look at.
    #[inline(always)]
    fn is(self, other: Self) -> bool {
        let differs = (self.for_others ^ other.for_others)
            | (self.tracing ^ other.tracing)
            | (self.execs ^ other.execs)
            | (self.mm ^ other.mm)
            | (self.files ^ other.files)
            | (self.sighand ^ other.sighand);
        differs == 0
    }
}

impl Told {
    /// # Safety
    /// `task` is a task_struct that the caller's iterator holds.
    #[inline(always)]
    pub unsafe fn of(task: *const c_void) -> Option<Self> {
        // SAFETY: the caller's promise.
        let same = unsafe { Self::may_be(task) }?;
        Some(Self { task, same })
    }

    /// Whether what is in this memory may be told as the task's: an iterator goes on in memory that the task has left by
    /// executing something, or by ending.
    #[inline(always)]
    pub fn has_memory(self, mm: u64) -> bool {
        self.same.for_others == 0 || (mm != 0 && mm == self.same.mm)
    }

    /// What an iterator program returns: 0, or 1 when the row may not be told after all. The kernel takes it back then, and asks
    /// once more (`bpf_iter_run_prog`).
    #[inline(always)]
    pub fn end(self) -> i32 {
        // SAFETY: as it was given to `of`; the iterator holds it until its program returns.
        match unsafe { Self::may_be(self.task) } {
            Some(still) => i32::from(!still.is(self.same)),
            None => 1,
        }
    }

    /// # Safety
    /// As for [`Self::of`].
    #[inline(always)]
    unsafe fn may_be(task: *const c_void) -> Option<Same> {
        let (_, reader) = current();
        // SAFETY: as in `tracked`; the rest is the caller's promise, and the tracer is read with checks.
        unsafe {
            let Some(tracer) = EYES.get_ptr(&reader).map(|tracer| *tracer) else {
                return tracked(field(task, TASK_TGID.load())).map(|_| Same::default());
            };
            // Whom nobody traces any more, or nobody yet, has its natural parent as the parent. The tracer's credentials are noted
            // last as the kernel makes a task traced, and are the next to go once the natural parent is back
            // (`__ptrace_link`, `__ptrace_unlink`).
            let tracing = read::<u64>(task, TASK_TRACER_CRED.load())?;
            let parent = read::<u64>(task, TASK_PARENT.load())? as *const c_void;
            if read::<u32>(parent, TASK_TGID.load())? != tracer {
                return None;
            }
            let still = read::<u64>(task, TASK_TRACER_CRED.load())?;
            if tracing == 0 || still != tracing || field::<u32>(task, TASK_PTRACE.load()) == 0 {
                return None;
            }
            Some(Same {
                for_others: 1,
                tracing,
                execs: read(task, TASK_EXECS.load())?,
                mm: read(task, TASK_MM.load())?,
                files: read(task, TASK_FILES.load())?,
                sighand: read(task, TASK_SIGHAND.load())?,
            })
        }
    }
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

//! Iterators over processes: their memory's layout, interval timers and signal actions.
use core::ffi::c_void;

use ckpt_common::{ABSENT, IntervalTimer, MemoryLayout};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::{
    filter::{copy, field, read},
    iterator::Rows,
    offsets::*,
    tasks::tracked_task,
};

/// Signal actions are copied in pieces of this many bytes: the stack has 512.
const PIECE: usize = 256;
/// `sizeof(struct k_sigaction) * _NSIG` on x86-64.
const SIGNAL_ACTIONS: usize = 64 * 32;

/// Every tracked process, through its leader, or through each of the others when the leader has exited.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_processes(ctx: *mut c_void) -> i32 {
    // SAFETY: as in `tasks::iter_tasks`.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    let task = told.task;
    // SAFETY: as in `tasks::iter_tasks`.
    let leader: *const c_void = unsafe { field(task, TASK_GROUP_LEADER.load()) };
    // SAFETY: a task keeps its leader's task_struct.
    if leader != task && !unsafe { field::<*const c_void>(leader, TASK_MM.load()) }.is_null() {
        return 0;
    }
    // SAFETY: as in `tasks::iter_tasks`.
    unsafe { write_process(rows, task) };
    told.end()
}

/// The signal actions of every tracked process: a `SigActionsRow`, written in pieces.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_signal_actions(ctx: *mut c_void) -> i32 {
    // SAFETY: as in `tasks::iter_tasks`.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    let task = told.task;
    // SAFETY: as in `tasks::iter_tasks`.
    let (leader, sighand): (*const c_void, *const c_void) =
        unsafe { (field(task, TASK_GROUP_LEADER.load()), field(task, TASK_SIGHAND.load())) };
    if leader != task || sighand.is_null() {
        return 0;
    }
    // SAFETY: as in `tasks::iter_tasks`.
    let tgid: u32 = unsafe { field(task, TASK_TGID.load()) };
    signal_actions(rows, tgid, sighand);
    told.end()
}

#[inline(always)]
fn signal_actions(rows: Rows, tgid: u32, sighand: *const c_void) -> Option<()> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Head {
        tgid: u32,
        count: u32,
        sighand: u64,
    }
    rows.write(&Head { tgid, count: ckpt_common::SIGNALS as u32, sighand: sighand as u64 })?;
    let mut bytes = [0u8; PIECE];
    for piece in 0..SIGNAL_ACTIONS / PIECE {
        // SAFETY: inside `sighand_struct.action`.
        unsafe { copy(&mut bytes, sighand, SIGHAND_ACTION.load() + (piece * PIECE) as u32) }?;
        rows.write(&bytes)?;
    }
    Some(())
}

/// A `ProcessRow`, part by part.
#[inline(always)]
unsafe fn write_process(rows: Rows, task: *const c_void) -> Option<()> {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Head {
        tgid: u32,
        tid: u32,
        mm: u64,
    }
    // SAFETY: a task_struct or what it keeps, and offsets of fields of these sizes; `mm` is null after the exit.
    unsafe {
        let mm: *const c_void = field(task, TASK_MM.load());
        rows.write(&Head {
            tgid: field(task, TASK_TGID.load()),
            tid: field(task, TASK_PID.load()),
            mm: mm as u64,
        })?;
        let mut memory = MemoryLayout::new_zeroed();
        if !mm.is_null() {
            copy_memory_layout(&mut memory, mm)?;
        }
        rows.write(&memory)?;
        write_group(rows, field(task, TASK_SIGNAL.load()))?;
        let mut more = More::new_zeroed();
        if !mm.is_null() {
            copy_more(&mut more, mm)?;
        }
        rows.write(&more)
    }
}

/// The end of a `ProcessRow`.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct More {
    flags: u64,
    default_flags: u64,
    segments: u64,
    futex_mask: u32,
    futex_chosen: u32,
    key_map: u32,
    execute_only_key: i32,
    barriers: u32,
    unused: u32,
}

#[inline(always)]
unsafe fn copy_more(to: &mut More, mm: *const c_void) -> Option<()> {
    // SAFETY: an mm_struct, and offsets of words in it; what it points to is read with checks.
    unsafe {
        copy(&mut to.flags, mm, MM_FLAGS.load())?;
        copy(&mut to.default_flags, mm, MM_DEF_FLAGS.load())?;
        if MM_SEGMENTS.load() != ABSENT {
            copy(&mut to.segments, mm, MM_SEGMENTS.load())?;
        }
        if MM_KEY_MAP.load() != ABSENT && MM_EXECUTE_ONLY_KEY.load() != ABSENT {
            to.key_map = u32::from(read::<u16>(mm, MM_KEY_MAP.load())?);
            to.execute_only_key = i32::from(read::<i16>(mm, MM_EXECUTE_ONLY_KEY.load())?);
        }
        if MM_BARRIERS.load() != ABSENT {
            copy(&mut to.barriers, mm, MM_BARRIERS.load())?;
        }
        if MM_FUTEX.load() != ABSENT && FUTEX_CHOSEN.load() != ABSENT {
            let slots = read::<u64>(mm, MM_FUTEX.load())? as *const c_void;
            if !slots.is_null() {
                copy(&mut to.futex_mask, slots, FUTEX_MASK.load())?;
                to.futex_chosen = u32::from(read::<u8>(slots, FUTEX_CHOSEN.load())?);
            }
        }
    }
    Some(())
}

/// The part of a `ProcessRow` that `signal_struct` holds.
#[inline(always)]
unsafe fn write_group(rows: Rows, signal: *const c_void) -> Option<()> {
    #[derive(FromBytes, IntoBytes, Immutable)]
    #[repr(C)]
    struct Group {
        real: IntervalTimer,
        /// `signal_struct.it`: `CPUCLOCK_PROF` first, then `CPUCLOCK_VIRT`.
        cpu: [IntervalTimer; 2],
        real_armed: u32,
        group_stop_count: u32,
        flags: u32,
        child_subreaper: u32,
    }
    let mut group = Group::new_zeroed();
    let bit = SIGNAL_SUBREAPER_BIT.load();
    // SAFETY: a task_struct or what it keeps, and offsets of fields of these sizes; a task keeps its signal_struct.
    unsafe {
        copy(&mut group.real.expires, signal, SIGNAL_REAL_EXPIRES.load())?;
        copy(&mut group.real.interval, signal, SIGNAL_REAL_INTERVAL.load())?;
        copy(&mut group.cpu, signal, SIGNAL_CPU_TIMERS.load())?;
        copy(&mut group.group_stop_count, signal, SIGNAL_GROUP_STOP_COUNT.load())?;
        copy(&mut group.flags, signal, SIGNAL_FLAGS.load())?;
        group.real_armed = u32::from(read::<u8>(signal, SIGNAL_REAL_STATE.load())? & 1);
        group.child_subreaper = u32::from(read::<u8>(signal, bit / 8)? >> (bit % 8)) & 1;
    }
    rows.write(&group)
}

#[inline(always)]
unsafe fn copy_memory_layout(to: &mut MemoryLayout, mm: *const c_void) -> Option<()> {
    // SAFETY: an mm_struct, and offsets of words in it.
    unsafe {
        copy(&mut to.start_code, mm, MM_START_CODE.load())?;
        copy(&mut to.end_code, mm, MM_END_CODE.load())?;
        copy(&mut to.start_data, mm, MM_START_DATA.load())?;
        copy(&mut to.end_data, mm, MM_END_DATA.load())?;
        copy(&mut to.start_brk, mm, MM_START_BRK.load())?;
        copy(&mut to.brk, mm, MM_BRK.load())?;
        copy(&mut to.start_stack, mm, MM_START_STACK.load())?;
        copy(&mut to.arg_start, mm, MM_ARG_START.load())?;
        copy(&mut to.arg_end, mm, MM_ARG_END.load())?;
        copy(&mut to.env_start, mm, MM_ENV_START.load())?;
        copy(&mut to.env_end, mm, MM_ENV_END.load())
    }
}

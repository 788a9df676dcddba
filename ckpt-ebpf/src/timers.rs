//! Iterator over POSIX timers: how often they have rung, which no call tells while their signals wait.
use core::ffi::c_void;

use ckpt_common::{ABSENT, TimerRow, lost};

use crate::{
    filter::{field, read, try_copy},
    maps::count_lost,
    offsets::*,
    tasks::tracked_task,
};

/// So many timers of a process are looked at, the newest first: the verifier wants an end.
const MOST: u32 = 256;

/// The row of one timer, and the next node; `None` if it cannot be read, which is counted. All is read before anything is
/// asked: each question would double what the verifier has to look at, timer after timer.
///
/// # Safety
/// `node` is that of a k_itimer.
#[inline(always)]
unsafe fn row_of(node: *const c_void, tgid: u32) -> Option<(TimerRow, *const c_void)> {
    let timer = node.wrapping_byte_sub(TIMER_NODE.load() as usize);
    let mut row = TimerRow { tgid, id: 0, waiting: 0, taken: 0, anew: 0, unused: 0 };
    let (mut next, mut sent) = (0u64, 0u32);
    // SAFETY: fields of it; its process stands still, or has it taken away: read with checks.
    let mut status = unsafe {
        try_copy(&mut next, node, 0)
            | try_copy(&mut row.id, timer, TIMER_ID.load())
            | try_copy(&mut row.waiting, timer, TIMER_OVERRUN.load())
            | try_copy(&mut row.taken, timer, TIMER_OVERRUN_LAST.load())
    };
    if TIMER_SEQUENCE.load() != ABSENT && TIMER_SENT.load() != ABSENT {
        // SAFETY: as above.
        status |= unsafe {
            try_copy(&mut row.anew, timer, TIMER_SEQUENCE.load()) | try_copy(&mut sent, timer, TIMER_SENT.load())
        };
        row.anew ^= sent;
    }
    if status != 0 {
        count_lost(lost::READS);
        return None;
    }
    Some((row, next as *const c_void))
}

/// A `TimerRow` for each timer of a tracked process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_timers(ctx: *mut c_void) -> i32 {
    // SAFETY: as in `tasks::iter_tasks`.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    let task = told.task;
    // SAFETY: as in `tasks::iter_tasks`; a task keeps its signal_struct.
    let (leader, signal): (*const c_void, *const c_void) =
        unsafe { (field(task, TASK_GROUP_LEADER.load()), field(task, TASK_SIGNAL.load())) };
    if leader != task {
        return 0;
    }
    // SAFETY: as above.
    let tgid: u32 = unsafe { field(task, TASK_TGID.load()) };
    // Either kind of list of the kernel begins with its first node, and so does each node with the next one. One ends with
    // null, the other where it has begun.
    let head = signal.wrapping_byte_add(SIGNAL_TIMERS.load() as usize);
    // SAFETY: a signal_struct.
    let mut node = unsafe { read::<u64>(signal, SIGNAL_TIMERS.load()) }.unwrap_or(0) as *const c_void;
    for _ in 0..MOST {
        if node.is_null() || node == head {
            break;
        }
        // SAFETY: a node of the list.
        let Some((row, next)) = (unsafe { row_of(node, tgid) }) else { break };
        if rows.write(&row).is_none() {
            break;
        }
        node = next;
    }
    told.end()
}

//! Iterator over POSIX timers: how often they have rung, which no call tells while their signals wait.
use core::ffi::c_void;

use ckpt_common::{ABSENT, TimerRow};

use crate::{
    filter::{field, read},
    offsets::*,
    tasks::tracked_task,
};

/// So many timers of a process are looked at, the newest first: the verifier wants an end.
const MOST: u32 = 256;

/// Whether it was set anew since its signal was sent.
///
/// # Safety
/// A k_itimer, read with checks.
#[inline(always)]
unsafe fn was_set_anew(timer: *const c_void) -> bool {
    if TIMER_SEQUENCE.load() == ABSENT || TIMER_SENT.load() == ABSENT {
        return false;
    }
    // SAFETY: offsets of words in it.
    let (now, sent) = unsafe { (read::<u32>(timer, TIMER_SEQUENCE.load()), read::<u32>(timer, TIMER_SENT.load())) };
    now != sent
}

/// A `TimerRow` for each timer of a tracked process that has rung more often than its signal was taken, or was set anew since.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_timers(ctx: *mut c_void) -> i32 {
    // SAFETY: as in `tasks::iter_tasks`.
    let Some((rows, task)) = (unsafe { tracked_task(ctx) }) else { return 0 };
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
        let timer = node.wrapping_byte_sub(TIMER_NODE.load() as usize);
        // SAFETY: a k_itimer, whose process stands still, or has it taken away: read with checks.
        let row = unsafe {
            let id = read(timer, TIMER_ID.load());
            let (waiting, taken) = (read(timer, TIMER_OVERRUN.load()), read(timer, TIMER_OVERRUN_LAST.load()));
            node = read::<u64>(node, 0).unwrap_or(0) as *const c_void;
            (id, waiting, taken, was_set_anew(timer))
        };
        let (Some(id), Some(waiting), Some(taken), anew) = row else { break };
        let row = TimerRow { tgid, id, waiting, taken, anew: u32::from(anew), unused: 0 };
        if (waiting > 0 || taken > 0 || anew) && rows.write(&row).is_none() {
            break;
        }
    }
    0
}

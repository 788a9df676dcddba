//! Fork, exec and group exit of tracked processes. A child of a tracked process is tracked before it runs.
use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::debug;
use ckpt_common::{LifecycleEvent, LifecycleKind, lost};

use crate::{
    filter::{current, field, tracked},
    maps::{LIFECYCLE, TRACKED, count_lost},
    offsets::{OWN_PIDNS, SIGNAL_LIVE, TASK_PID, TASK_SIGNAL, TASK_TGID},
    tasks::number_in,
};

/// `trace_sched_process_fork(struct task_struct *parent, struct task_struct *child)`: the child has its ids and is
/// in no run queue yet.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn on_fork(ctx: BtfTracePointContext) -> i32 {
    let (tgid, tid) = current();
    let Some(own_tgid) = tracked(tgid) else { return 0 };
    let child: *const c_void = ctx.arg(1);
    // SAFETY: a task_struct, and offsets of two `pid_t` in it.
    let (child_pid, child_tgid): (u32, u32) =
        unsafe { (field(child, TASK_PID.load()), field(child, TASK_TGID.load())) };
    if child_pid != child_tgid {
        return 0;
    }
    // SAFETY: a task_struct.
    let own_child_tgid = unsafe { number_in(child, OWN_PIDNS.load()) };
    if TRACKED.insert(&child_tgid, &own_child_tgid, 0).is_err() {
        count_lost(lost::CHILDREN);
    }
    emit(LifecycleKind::Fork, (tgid, tid, own_tgid), (child_tgid, own_child_tgid));
    0
}

/// `trace_sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`: past the point of no
/// return, the other threads are gone.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn on_exec(ctx: BtfTracePointContext) -> i32 {
    let (tgid, tid) = current();
    let Some(own_tgid) = tracked(tgid) else { return 0 };
    emit(LifecycleKind::Exec, (tgid, tid, own_tgid), (0, 0));
    debug!(&ctx, "exec of process {}", tgid);
    0
}

/// `trace_sched_process_exit(struct task_struct *p, …)`, which every thread comes through. `signal->live` has been
/// counted down before, so it is 0 for the last one; two that exit at once may both see 0, but only one of them
/// removes the entry.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn on_group_exit(ctx: BtfTracePointContext) -> i32 {
    let (tgid, tid) = current();
    let Some(own_tgid) = tracked(tgid) else { return 0 };
    let task: *const c_void = ctx.arg(0);
    // SAFETY: a task_struct, whose signal_struct lives as long as it does; `live` is an atomic_t of 4 bytes.
    let live: i32 = unsafe { field(field(task, TASK_SIGNAL.load()), SIGNAL_LIVE.load()) };
    if live != 0 || TRACKED.remove(&tgid).is_err() {
        return 0;
    }
    emit(LifecycleKind::GroupExit, (tgid, tid, own_tgid), (0, 0));
    debug!(&ctx, "exit of process {}", tgid);
    0
}

#[inline(always)]
fn emit(
    kind: LifecycleKind,
    (tgid, tid, own_tgid): (u32, u32, u32),
    (child_tgid, own_child_tgid): (u32, u32),
) {
    let Some(mut slot) = LIFECYCLE.reserve::<LifecycleEvent>(0) else { return count_lost(lost::LIFECYCLE) };
    // SAFETY: the helper has no precondition.
    let time = unsafe { bpf_ktime_get_ns() };
    slot.write(LifecycleEvent { kind: kind as u32, tgid, tid, own_tgid, child_tgid, own_child_tgid, time });
    slot.submit(0);
}

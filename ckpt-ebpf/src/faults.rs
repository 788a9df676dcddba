//! Write faults of tracked processes: a hint of what becomes dirty, to choose what to copy first.
use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, helpers::bpf_ktime_get_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use ckpt_common::{WriteFault, lost};

use crate::{
    filter::{current, tracked},
    maps::{FAULTS, count_lost},
};

/// `X86_PF_WRITE`.
const WRITE: u64 = 1 << 1;
const PAGE: u64 = 4096;

/// `trace_page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code)`. The reader comes
/// by on its own time, so it is not woken.
#[btf_tracepoint(function = "page_fault_user")]
pub fn on_write_fault(ctx: BtfTracePointContext) -> i32 {
    let error_code: u64 = ctx.arg(2);
    if error_code & WRITE == 0 {
        return 0;
    }
    let (tgid, tid) = current();
    if tracked(tgid).is_none() {
        return 0;
    }
    let address: u64 = ctx.arg(0);
    let Some(mut slot) = FAULTS.reserve::<WriteFault>(0) else {
        count_lost(lost::FAULTS);
        return 0;
    };
    // SAFETY: the helper has no precondition.
    let time = unsafe { bpf_ktime_get_ns() };
    slot.write(WriteFault { tgid, tid, page: address & !(PAGE - 1), time });
    slot.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}

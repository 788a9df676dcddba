//! Write faults of tracked processes: a hint of what becomes dirty. The reader comes by on its own time, so it is not
//! woken.
use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, macros::btf_tracepoint, programs::BtfTracePointContext};
use ckpt_common::{WriteFault, lost};

use crate::{
    filter::{current, tracked},
    maps::{FAULTS, count_lost},
};

/// `X86_PF_WRITE`.
const WRITE: u64 = 1 << 1;
const PAGE: u64 = 4096;
/// Addresses from here on are the kernel's own.
const USER_END: u64 = 1 << 63;

/// `trace_page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code)`: a store.
#[btf_tracepoint(function = "page_fault_user")]
pub fn on_write_fault(ctx: BtfTracePointContext) -> i32 {
    log(&ctx)
}

/// `trace_page_fault_kernel`, with the same arguments: a system call that writes to memory of its caller, as read(2)
/// does. What goes through `get_user_pages` does not come by.
#[btf_tracepoint(function = "page_fault_kernel")]
pub fn on_kernel_write_fault(ctx: BtfTracePointContext) -> i32 {
    log(&ctx)
}

#[inline(always)]
fn log(ctx: &BtfTracePointContext) -> i32 {
    let (address, error_code): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    if error_code & WRITE == 0 || address >= USER_END {
        return 0;
    }
    let (tgid, _) = current();
    let Some(own_tgid) = tracked(tgid) else { return 0 };
    let Some(mut slot) = FAULTS.reserve::<WriteFault>(0) else {
        count_lost(lost::FAULTS);
        return 0;
    };
    slot.write(WriteFault { tgid, own_tgid, page: address & !(PAGE - 1) });
    slot.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}

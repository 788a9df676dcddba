//! Programs that do nothing: whether the kernel takes them is what `ckptbpf check` wants to know.
use aya_ebpf::{
    macros::{fentry, lsm},
    programs::{FEntryContext, LsmContext},
};

/// Function entry: some kernels are built without, or lock it down.
#[fentry(function = "do_exit")]
pub fn probe_fentry(_ctx: FEntryContext) -> i32 {
    0
}

/// Security hook: needs `bpf` in the kernel's `lsm=` list to have an effect.
#[lsm(hook = "file_open")]
pub fn probe_lsm(ctx: LsmContext) -> i32 {
    ctx.arg(1)
}

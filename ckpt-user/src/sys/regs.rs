//! General registers of a stopped x86-64 thread, and what they say about the system call it is in.

/// `struct user_regs_struct` of <sys/user.h>; the order is the kernel's `pt_regs` for ptrace.
pub type Regs = libc::user_regs_struct;

/// Kernel-internal results of an interrupted system call (include/linux/errno.h).
pub const ERESTARTSYS: i64 = 512;
/// Restarted whatever the signal's flags say.
pub const ERESTARTNOINTR: i64 = 513;
/// Restarted only where no handler runs.
pub const ERESTARTNOHAND: i64 = 514;
/// Goes on through `restart_syscall(2)` and the thread's restart block.
pub const ERESTART_RESTARTBLOCK: i64 = 516;

/// What the kernel will do with the interrupted system call of a stopped thread when it runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Not inside a system call, or the call has its final result.
    No,
    /// The call is issued again with the same arguments.
    Again,
    /// `restart_syscall(2)` continues it from the thread's restart block.
    Block,
}

/// Classifies `regs` as arch_do_signal_or_restart() of arch/x86/kernel/signal.c does.
pub fn restart_of(regs: &Regs) -> Restart {
    if (regs.orig_rax as i64) < 0 {
        return Restart::No;
    }
    match -(regs.rax as i64) {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Restart::Again,
        ERESTART_RESTARTBLOCK => Restart::Block,
        _ => Restart::No,
    }
}

/// The bytes of `regs` as the kernel lays them out: 27 little-endian u64, 216 bytes.
pub fn to_words(regs: &Regs) -> [u64; 27] {
    [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.orig_rax,
        regs.rip,
        regs.cs,
        regs.eflags,
        regs.rsp,
        regs.ss,
        regs.fs_base,
        regs.gs_base,
        regs.ds,
        regs.es,
        regs.fs,
        regs.gs,
    ]
}

/// The reverse of [`to_words`].
pub fn from_words(w: &[u64; 27]) -> Regs {
    Regs {
        r15: w[0],
        r14: w[1],
        r13: w[2],
        r12: w[3],
        rbp: w[4],
        rbx: w[5],
        r11: w[6],
        r10: w[7],
        r9: w[8],
        r8: w[9],
        rax: w[10],
        rcx: w[11],
        rdx: w[12],
        rsi: w[13],
        rdi: w[14],
        orig_rax: w[15],
        rip: w[16],
        cs: w[17],
        eflags: w[18],
        rsp: w[19],
        ss: w[20],
        fs_base: w[21],
        gs_base: w[22],
        ds: w[23],
        es: w[24],
        fs: w[25],
        gs: w[26],
    }
}

/// Component of the rights to protection keys.
const PKRU: u32 = 9;

/// The first key's bits of PKRU: no access, no writing. The kernel needs both wherever it calls on behalf of a thread.
pub const FIRST_KEY: u32 = 3;

/// Where PKRU is in an XSAVE area that is not compacted, bytes (CPUID leaf 13); 0 on a processor without it.
fn pkru_offset() -> usize {
    const LEAF: u32 = 13;
    std::arch::x86_64::__cpuid_count(LEAF, PKRU).ebx as usize
}

/// PKRU in an XSAVE area as ptrace(2) gives it; `None` where this processor and kernel have none.
pub fn key_rights(xstate: &[u8]) -> Option<u32> {
    key_rights_at(xstate, pkru_offset())
}

fn key_rights_at(xstate: &[u8], offset: usize) -> Option<u32> {
    /// Where the kernel says which components the area has (struct xstate_header's software bytes).
    const COMPONENTS: usize = 464;
    let components = xstate.get(COMPONENTS..COMPONENTS + 8)?.try_into().ok()?;
    let has = u64::from_le_bytes(components) >> PKRU & 1 != 0;
    let rights = xstate.get(offset..offset + 4)?.try_into().ok()?;
    has.then(|| u32::from_le_bytes(rights))
}

/// Whether user space may use protection keys (CPUID leaf 7: OSPKE).
pub fn has_protection_keys() -> bool {
    const LEAF: u32 = 7;
    const OSPKE: u32 = 4;
    std::arch::x86_64::__cpuid_count(LEAF, 0).ecx >> OSPKE & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_to_protection_keys_are_found_where_the_kernel_has_put_them() {
        let mut xstate = vec![0; 2696];
        xstate[2688..2692].copy_from_slice(&0x5555_5550u32.to_le_bytes());
        assert_eq!(key_rights_at(&xstate, 2688), None, "the machine has none");
        xstate[464..472].copy_from_slice(&0x2e7u64.to_le_bytes());
        assert_eq!(key_rights_at(&xstate, 2688), Some(0x5555_5550));
        assert_eq!(key_rights_at(&xstate[..2690], 2688), None);
    }

    #[test]
    fn words_round_trip() {
        let mut words = [0u64; 27];
        for (i, w) in words.iter_mut().enumerate() {
            *w = i as u64 * 0x0101_0101 + 7;
        }
        assert_eq!(to_words(&from_words(&words)), words);
    }
}

//! Memory barriers that a process has registered for (membarrier(2)): without that, its calls fail with EPERM.

use crate::sys::remote::Remote;
use std::io;

/// MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3), and the commands that it gives a bit each.
pub const GET: u64 = 1 << 9;
const GLOBAL: u32 = 1 << 2;
const PRIVATE: u32 = 1 << 4;
const SYNC_CORE: u32 = 1 << 6;
const RSEQ: u32 = 1 << 8;
const ALL: u32 = GLOBAL | PRIVATE | SYNC_CORE | RSEQ;

/// The commands from `mm_struct.membarrier_state`: MEMBARRIER_STATE_* of include/linux/sched/mm.h, of which those with READY
/// say that a registration is over.
pub fn from_state(state: u32) -> u32 {
    const READY: [(u32, u32); 4] = [(1, PRIVATE), (1 << 2, GLOBAL), (1 << 4, SYNC_CORE), (1 << 6, RSEQ)];
    READY.iter().filter(|(ready, _)| state & ready != 0).fold(0, |all, (_, command)| all | command)
}

pub fn are_known(commands: u32) -> bool {
    commands & !ALL == 0
}

/// The commands from what the system call has returned: an error before Linux 6.3, which tells of none.
pub fn from_call(result: i64) -> u32 {
    u32::try_from(result).map_or(0, |commands| commands & ALL)
}

/// Registers the process; the kernel waits for nobody while it has one thread.
///
/// # Errors
/// Named: this kernel has no such barrier.
pub fn rebuild(commands: u32, remote: &mut Remote) -> io::Result<()> {
    for command in [GLOBAL, PRIVATE, SYNC_CORE, RSEQ].into_iter().filter(|command| commands & command != 0) {
        remote
            .call(libc::SYS_membarrier, &[u64::from(command), 0])
            .map_err(|e| io::Error::new(e.kind(), format!("membarrier(2), command {command:#x}: {e}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_and_what_it_tells_are_the_same() {
        assert_eq!(from_state(0b0000_0011), from_call(0x10));
        assert_eq!(from_state(0b1111_1111), from_call(0x154));
        assert_eq!(from_state(0b1010_1010), from_call(-22));
    }
}

//! The tile registers of AMX: a process asks for them before any of its threads may use them (arch_prctl(2), xstate.rst of the
//! kernel's documentation). What they hold nobody can give to a thread that has never used them (`xstateregs_set`).

use crate::machine;
use crate::refusal::{Reading, Refusal};
use crate::sys::ptrace::Stopped;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;
use std::sync::OnceLock;

/// ARCH_GET_XCOMP_PERM and ARCH_REQ_XCOMP_PERM.
pub const GET: u64 = 0x1022;
const REQUEST: u64 = 0x1023;
/// XFEATURE_XTILE_DATA.
const DATA: u32 = 18;

/// Whether this machine has any; of others nothing need be asked.
pub fn are_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| machine::cpu_features().iter().any(|feature| feature == "amx_tile"))
}

/// Whether they were asked for, from the components that ARCH_GET_XCOMP_PERM has written.
pub fn are_permitted(components: u64) -> bool {
    components >> DATA & 1 != 0
}

/// # Errors
/// Names a thread that has something in them.
pub fn check(pid: Pid, thread: &Stopped) -> Result<(), Refusal> {
    if are_here() && are_in_use(&thread.xstate().reading(pid, "registers")?) {
        let what = format!("has thread {} that computes with tile registers (AMX)", thread.tid());
        return Err(Refusal::unsupported(pid, what, "no new thread can be given what they hold"));
    }
    Ok(())
}

/// XSTATE_BV of the XSAVE header.
fn are_in_use(xstate: &[u8]) -> bool {
    const HEADER: usize = 512;
    let words = xstate.get(HEADER..HEADER + 8).and_then(|bytes| bytes.try_into().ok());
    words.is_some_and(|bytes| u64::from_le_bytes(bytes) >> DATA & 1 != 0)
}

/// Asks for them, before there are other threads.
pub fn rebuild(remote: &mut Remote) -> io::Result<()> {
    remote
        .call(libc::SYS_arch_prctl, &[REQUEST, u64::from(DATA)])
        .map(drop)
        .map_err(|e| io::Error::new(e.kind(), format!("ARCH_REQ_XCOMP_PERM: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_in_use_where_the_header_says_so() {
        let mut xstate = vec![0; 576];
        xstate[512..520].copy_from_slice(&0x2_02e7u64.to_le_bytes());
        assert!(!are_in_use(&xstate), "their shape alone");
        xstate[512..520].copy_from_slice(&0x6_02e7u64.to_le_bytes());
        assert!(are_in_use(&xstate));
        assert!(!are_in_use(&xstate[..515]));
    }
}

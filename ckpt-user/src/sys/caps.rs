//! Effective capabilities of one thread: which there are, and some laid down for a while.

use std::io;
use std::marker::PhantomData;

/// CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_ADMIN, CAP_NET_RAW: what root may do to sockets and others may not.
const OF_THE_NETWORK: [u32; 4] = [10, 11, 12, 13];

/// struct __user_cap_data_struct (linux/capability.h), version 3: low and high halves of 64 bits.
type Sets = [[u32; 3]; 2];

/// struct __user_cap_header_struct, of the calling thread.
const HEADER: [u32; 2] = [0x2008_0522, 0];

/// While it lives, what this thread does to sockets is what any user may do. Bound to its thread.
#[derive(Debug)]
pub struct NoNetworkRights {
    _without: Without,
}

impl NoNetworkRights {
    pub fn begin() -> io::Result<Self> {
        Ok(Self { _without: Without::of(&OF_THE_NETWORK)? })
    }
}

/// While it lives, this thread does without some capabilities. Bound to its thread.
#[derive(Debug)]
pub struct Without {
    laid_down: [u32; 2],
    thread: PhantomData<*const ()>,
}

impl Without {
    pub fn of(capabilities: &[u32]) -> io::Result<Self> {
        let mut sets = get()?;
        let mut laid_down = [0; 2];
        for (half, (set, down)) in sets.iter_mut().zip(&mut laid_down).enumerate() {
            *down = set[0] & bits(capabilities, half);
            set[0] &= !*down;
        }
        set(&sets)?;
        Ok(Self { laid_down, thread: PhantomData })
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        // What is permitted was not touched, so that this is allowed.
        let now = get().map(|mut now| {
            now.iter_mut().zip(self.laid_down).for_each(|(set, down)| set[0] |= down);
            now
        });
        let _ = now.and_then(|now| set(&now));
    }
}

/// Capabilities of one half of the sets.
fn bits(capabilities: &[u32], half: usize) -> u32 {
    let of_half = capabilities.iter().filter(|one| **one as usize / 32 == half);
    of_half.fold(0, |bits, one| bits | 1 << (one % 32))
}

/// CAP_SYS_PTRACE.
pub const SYS_PTRACE: u32 = 19;
/// CAP_SYS_ADMIN.
pub const SYS_ADMIN: u32 = 21;

/// Whether this thread has a capability, in its own user namespace.
pub fn has(capability: u32) -> bool {
    let word = |sets: &Sets| sets.get(capability as usize / 32).map_or(0, |set| set[0]);
    get().is_ok_and(|sets| word(&sets) & 1 << (capability % 32) != 0)
}

/// Lays all but `kept` (numbers) down, of this thread and of whatever it executes, for good.
pub fn keep_only(kept: &[u32]) -> io::Result<()> {
    for capability in (0..64).filter(|one| !kept.contains(one)) {
        // SAFETY: two integers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) };
        match super::check(i64::from(dropped)) {
            // The kernel has no such capability.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            done => drop(done?),
        }
    }
    let mut sets = get()?;
    for (half, set) in sets.iter_mut().enumerate() {
        let bits =
            kept.iter().filter(|one| **one as usize / 32 == half).fold(0, |bits, one| bits | 1 << (one % 32));
        // Effective and permitted; nothing is inherited.
        *set = [set[0] & bits, set[1] & bits, 0];
    }
    set(&sets)
}

/// Lays all of them down, of this thread, for good: what is permitted, in effect and inherited.
pub fn drop_all() -> io::Result<()> {
    set(&Sets::default())
}

/// Whether this thread has any, in whichever set.
pub fn has_any() -> bool {
    get().is_ok_and(|sets| sets != Sets::default())
}

fn get() -> io::Result<Sets> {
    let (mut header, mut sets) = (HEADER, Sets::default());
    // SAFETY: the kernel reads and writes the header, 8 bytes, and writes two data structures of 12 bytes each; both live
    // across the call.
    super::check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })?;
    Ok(sets)
}

fn set(sets: &Sets) -> io::Result<()> {
    let mut header = HEADER;
    // SAFETY: the kernel reads (and may write) the header, 8 bytes, and reads two data structures of 12 bytes each; both
    // live across the call. Only the calling thread's capabilities change.
    super::check(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_back_afterwards() {
        let before = get().unwrap();
        {
            let _without = NoNetworkRights::begin().unwrap();
            assert_eq!(get().unwrap()[0][0] & bits(&OF_THE_NETWORK, 0), 0);
        }
        assert_eq!(get().unwrap(), before);
    }
}

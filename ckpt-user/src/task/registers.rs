//! General registers, extended state and the rseq area of one thread.

use crate::refusal::{Reading, Refusal};
use crate::sys::ptrace::{RseqArea, Stopped};
use crate::sys::regs::{self, Regs};
use crate::sys::xsave::LEGACY;
use nix::unistd::Pid;
use std::io;
use std::sync::OnceLock;

/// `user_regs_struct` as 27 words, and the XSAVE area: 512 bytes of a processor without XSAVE (struct user_fpregs_struct).
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Registers {
    #[prost(fixed64, repeated, tag = "1")]
    pub words: Vec<u64>,
    #[prost(bytes = "vec", tag = "2")]
    pub xstate: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub rseq: Option<Rseq>,
}

/// A registered rseq area (rseq(2)).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Rseq {
    #[prost(uint64, tag = "1")]
    pub pointer: u64,
    #[prost(uint32, tag = "2")]
    pub size: u32,
    #[prost(uint32, tag = "3")]
    pub signature: u32,
}

/// The SSE registers in the XSAVE area.
const SSE: std::ops::Range<usize> = 160..416;

/// Code segment of 64-bit user code; anything else is a 32-bit program.
pub const USER_CS: u64 = 0x33;

impl Registers {
    /// # Errors
    /// InvalidData when the image holds another number of words.
    pub fn regs(&self) -> io::Result<Regs> {
        let words: &[u64; 27] = self.words.as_slice().try_into().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the image's register record is not of an x86-64 thread",
            )
        })?;
        Ok(regs::from_words(words))
    }
}

/// Reads the registers of a stopped thread.
pub fn capture(thread: &Stopped, regs: &Regs) -> io::Result<Registers> {
    let area = thread.rseq()?;
    let rseq = (area.pointer != 0).then_some(Rseq {
        pointer: area.pointer,
        size: area.size,
        signature: area.signature,
    });
    Ok(Registers { words: regs::to_words(regs).to_vec(), xstate: thread.xstate()?, rseq })
}

/// # Errors
/// Names a thread that has denied itself all memory without a protection key of its own; a kernel that does not tell what a thread
/// has registered.
pub fn check(pid: Pid, thread: &Stopped) -> Result<(), Refusal> {
    /// Of the kernel, whichever thread is asked.
    static UNTOLD: OnceLock<Option<String>> = OnceLock::new();
    let untold =
        || thread.rseq().err().filter(|e| e.kind() == io::ErrorKind::Unsupported).map(|e| e.to_string());
    if let Some(why) = UNTOLD.get_or_init(untold) {
        return Err(Refusal::unsupported(pid, format!("has thread {}", thread.tid()), why.as_str()));
    }
    if !regs::has_protection_keys() {
        return Ok(());
    }
    let xstate = thread.xstate().reading(pid, "registers")?;
    match regs::key_rights(&xstate) {
        Some(rights) if rights & regs::FIRST_KEY != 0 => Err(Refusal::unsupported(
            pid,
            format!(
                "has thread {} that has denied itself the first protection key (PKRU {rights:x})",
                thread.tid()
            ),
            "no system call could be made for it (pkeys(7))",
        )),
        _ => Ok(()),
    }
}

/// Gives a thread its xstate.
///
/// # Errors
/// The kernel leaves its rights to protection keys as they are (Linux 5.14 to 6.1, before ptrace(2) could set them again), or
/// clears half of its SSE registers (5.14 to 5.17, on a processor without XSAVE).
pub fn rebuild_xstate(own: &Registers, thread: &Stopped) -> io::Result<()> {
    thread.set_xstate(&own.xstate)?;
    if own.xstate.len() == LEGACY && thread.xstate()?.get(SSE) != own.xstate.get(SSE) {
        return Err(io::Error::other("this kernel lets nobody set all SSE registers (NT_PRFPREG)"));
    }
    let rights = regs::key_rights(&own.xstate);
    if rights.is_some() && regs::key_rights(&thread.xstate()?) != rights {
        return Err(io::Error::other("this kernel lets nobody set rights to protection keys (PKRU)"));
    }
    Ok(())
}

/// Sets an instruction pointer inside an rseq critical section to the section's abort address, as the kernel would on the
/// way back to user space. The kernel forgets the section as soon as the thread runs anywhere else, which it does for an
/// injected call: so this comes before.
pub fn abort_section(thread: &Stopped, regs: &mut Regs) -> bool {
    let area = thread.rseq().unwrap_or_default();
    let abort = critical_section_abort(thread.tid(), area, regs.rip);
    regs.rip = abort.unwrap_or(regs.rip);
    abort.is_some()
}

/// The abort address when `rip` lies in the critical section that the area names (struct rseq, rseq_cs:
/// linux/rseq.h).
fn critical_section_abort(tid: Pid, area: RseqArea, rip: u64) -> Option<u64> {
    if area.pointer == 0 {
        return None;
    }
    let mut pointer = [0; 8];
    crate::sys::mem::read(tid, area.pointer + 8, &mut pointer).ok()?;
    let section = u64::from_le_bytes(pointer);
    if section == 0 {
        return None;
    }
    let mut words = [0; 32];
    crate::sys::mem::read(tid, section, &mut words).ok()?;
    let word = |i: usize| words[i * 8..i * 8 + 8].iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
    let (start, len, abort) = (word(1), word(2), word(3));
    (rip.wrapping_sub(start) < len).then_some(abort)
}

//! Sleeps that a stop interrupted and that the kernel would continue by restart_syscall(2): nanosleep,
//! clock_nanosleep (relative), poll, futex with a relative timeout. They go on for the time that was left.
//!
//! A thread that stops in such a call has -ERESTART_RESTARTBLOCK in rax, and in the kernel a restart block with
//! the moment of its end. Letting it run on needs nothing: no step of ours touches the block. For the image the
//! block is read by iterator; its times are the host's, so the program's time namespace is added. Without BPF
//! the kernel still tells the rest of a sleep that was asked to report it (the second timespec of nanosleep(2)
//! is written at each interruption); any other call begins anew with its full time.
//!
//! At the rebuild the call is made in the skeleton thread for the time that is left, interrupted at once, and
//! thereby leaves a restart block of the same kind behind; then the registers are set over it. A call that does
//! not sleep any more (time over, futex changed, descriptor ready) has its result.

use super::clock::Shift;
use crate::sys::bpf::Restart as Block;
use crate::sys::inject::Call;
use crate::sys::mem::Forced;
use crate::sys::regs::{self, Regs, Restart};
use crate::sys::remote::Remote;
use std::io;

const NANOSLEEP: u32 = libc::SYS_nanosleep as u32;
const CLOCK_NANOSLEEP: u32 = libc::SYS_clock_nanosleep as u32;
const POLL: u32 = libc::SYS_poll as u32;
const FUTEX: u32 = libc::SYS_futex as u32;
const SECOND: i64 = 1_000_000_000;

/// An interrupted sleep.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Sleep {
    /// The call to issue: nanosleep, clock_nanosleep, poll or futex; its arguments are in the registers.
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// The clock of `expires`: CLOCK_MONOTONIC or CLOCK_BOOTTIME.
    #[prost(int32, tag = "2")]
    pub clock: i32,
    /// When it ends on the program's own clock, nanoseconds; none: not known, or never.
    #[prost(int64, optional, tag = "3")]
    pub expires: Option<i64>,
    /// Where clock_nanosleep reports the rest to, 0 for nowhere.
    #[prost(uint64, tag = "4")]
    pub rest_at: u64,
}

/// The sleep of a thread that stopped with `regs`; `block` is its restart block where that is known.
pub fn capture(regs: &Regs, block: Option<&Block>, memory: &Forced, shift: Shift) -> Option<Sleep> {
    if regs::restart_of(regs) != Restart::Block {
        return None;
    }
    let plain = |number, expires| Sleep { number, clock: libc::CLOCK_MONOTONIC, expires, rest_at: 0 };
    let own = |host: u64, clock| Some(i64::try_from(host).ok()?.saturating_add(shift.from_host(clock)?));
    match block {
        Some(Block::Nanosleep { clock, remaining, expires }) if shift.from_host(*clock).is_some() => {
            let expires = own(*expires, *clock);
            Some(Sleep { number: CLOCK_NANOSLEEP, clock: *clock, expires, rest_at: *remaining })
        }
        Some(Block::Futex { expires, .. }) => Some(plain(FUTEX, own(*expires, libc::CLOCK_MONOTONIC))),
        Some(Block::Poll { expires, .. }) => {
            Some(plain(POLL, expires.and_then(|e| own(e, libc::CLOCK_MONOTONIC))))
        }
        _ => {
            let number = number_of(regs, memory)?;
            Some(reported_rest(regs, number, memory, shift).unwrap_or_else(|| plain(number, None)))
        }
    }
}

/// The call's number. One that has been continued before stands as restart_syscall(2) in the registers, with the
/// arguments of the call itself; then the instruction before it tells the number, in code as compilers make it.
fn number_of(regs: &Regs, memory: &Forced) -> Option<u32> {
    if regs.orig_rax != libc::SYS_restart_syscall as u64 {
        return u32::try_from(regs.orig_rax).ok();
    }
    let mut code = [0; 7];
    memory.read(regs.rip.wrapping_sub(7), &mut code).ok()?;
    match code {
        // mov eax, imm32; syscall
        [0xb8, a, b, c, d, 0x0f, 0x05] => Some(u32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}

/// The rest that the kernel has written to the program's memory.
fn reported_rest(regs: &Regs, number: u32, memory: &Forced, shift: Shift) -> Option<Sleep> {
    let (clock, rest_at) = match number {
        NANOSLEEP => (libc::CLOCK_MONOTONIC, regs.rsi),
        CLOCK_NANOSLEEP if regs.rdi == libc::CLOCK_REALTIME as u64 => (libc::CLOCK_MONOTONIC, regs.r10),
        CLOCK_NANOSLEEP => (i32::try_from(regs.rdi).ok()?, regs.r10),
        _ => return None,
    };
    if rest_at == 0 {
        return None;
    }
    let mut rest = [[0; 8]; 2];
    memory.read(rest_at, rest.as_flattened_mut()).ok()?;
    let [seconds, nanoseconds] = rest.map(i64::from_le_bytes);
    let left = seconds.checked_mul(SECOND)?.checked_add(nanoseconds)?;
    Some(Sleep {
        number: CLOCK_NANOSLEEP,
        clock,
        expires: Some(shift.now(clock)?.saturating_add(left)),
        rest_at,
    })
}

/// Puts `remote` to the same sleep, where that can be done, and returns the registers to go on with. `shift` is
/// that of the rebuilt process.
pub fn rebuild(
    sleep: Option<&Sleep>,
    wanted: Regs,
    remote: &mut Remote,
    gadget: u64,
    shift: Shift,
) -> io::Result<Regs> {
    if regs::restart_of(&wanted) != Restart::Block {
        return Ok(wanted);
    }
    let Some(sleep) = sleep else {
        // What restart_syscall(2) gives when there is nothing to continue.
        return Ok(over(wanted, -i64::from(libc::EINTR)));
    };
    let left = sleep.expires.zip(shift.now(sleep.clock)).map(|(end, now)| end.saturating_sub(now).max(0));
    let Some(call) = left.map(|left| shortened(sleep, &wanted, left, remote)).transpose()?.flatten() else {
        return Ok(again(wanted, sleep.number));
    };
    let result = remote.interrupted(gadget, call)?;
    Ok(if result == -regs::ERESTART_RESTARTBLOCK { wanted } else { over(wanted, result) })
}

/// The call with `left` nanoseconds to go; none where its time is absolute anyway.
fn shortened(sleep: &Sleep, regs: &Regs, left: i64, remote: &mut Remote) -> io::Result<Option<Call>> {
    const COMMAND: u64 = 0x7f;
    let mut timespec = [0; 16];
    timespec[..8].copy_from_slice(&(left / SECOND).to_le_bytes());
    timespec[8..].copy_from_slice(&(left % SECOND).to_le_bytes());
    Ok(match sleep.number {
        CLOCK_NANOSLEEP => {
            let at = remote.data(&timespec)?;
            Some(Call::new(libc::SYS_clock_nanosleep, &[sleep.clock as u64, 0, at, sleep.rest_at]))
        }
        FUTEX if regs.rsi & COMMAND == libc::FUTEX_WAIT as u64 => {
            let at = remote.data(&timespec)?;
            Some(Call::new(libc::SYS_futex, &[regs.rdi, regs.rsi, regs.rdx, at]))
        }
        POLL => {
            let milliseconds = (left as u64).div_ceil(1_000_000);
            Some(Call::new(libc::SYS_poll, &[regs.rdi, regs.rsi, milliseconds.min(i32::MAX as u64)]))
        }
        _ => None,
    })
}

fn again(regs: Regs, number: u32) -> Regs {
    Regs { rax: u64::from(number), orig_rax: u64::MAX, rip: regs.rip.wrapping_sub(2), ..regs }
}

fn over(regs: Regs, result: i64) -> Regs {
    Regs { rax: result as u64, orig_rax: u64::MAX, ..regs }
}

//! One thread: attaching to it, and stopping it alone.

use super::yama;
use super::{ONLY_64_BIT, does_not_stop, rewind, wait_one};
use crate::daemon::admission;
use crate::refusal::{Reading, Refusal, named};
use crate::sys::ptrace::{self, Running, Stopped};
use crate::task::proc::{ProcDir, reached_by};
use crate::task::registers::{self, USER_CS};
use crate::task::unsupported;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Seizes a thread; `None` when it has ended between the listing and the seize. A worker asks for leave where it takes that
/// ([`admission`]).
///
/// # Errors
/// [`Refusal::Traced`] says by whom, or why the kernel does not let us.
pub(super) fn seize(pid: Pid, tid: Pid) -> Result<Option<Running>, Refusal> {
    /// On its way out a thread is refused, as if it were not ours to trace; and a moment later its id is that of another
    /// thread, which has executed a program.
    const TRIES: u32 = 5;
    let mut tries = 0;
    let (mut is_asked, mut refused) = (false, None);
    loop {
        match ptrace::seize(tid, ptrace::O_TRACESYSGOOD) {
            Ok(running) => return Ok(Some(running)),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(_) if has_ended(pid, tid) => return Ok(None),
            // Left over from a freeze that was given up before this thread stood.
            Err(_) if crate::sys::wait::is_traced_by_us(tid) => return Ok(Some(ptrace::still_seized(tid))),
            Err(e) if tries == TRIES => return Err(refused.unwrap_or_else(|| not_traceable(pid, tid, &e))),
            Err(_) if !is_asked => {
                is_asked = true;
                // One that has ended meanwhile is none that is refused.
                refused = admission::ask(pid).err();
                continue;
            }
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
        tries += 1;
    }
}

/// Stops one thread and nobody else; let go of, it goes on as if it had not been stopped, but that a wait whose timeout the kernel
/// has forgotten (see [`rewind`]) begins anew. `None` when it has ended.
///
/// # Errors
/// [`Refusal::NotStopped`] when it does not stand by `until`: whoever takes in its stop later lets go of it
/// ([`super::let_go_late`]).
pub fn stopped(pid: Pid, tid: Pid, until: Instant) -> Result<Option<Stopped>, Refusal> {
    if unsupported::is_32_bit(pid) {
        return Err(Refusal::unsupported(pid, "is a 32-bit program", ONLY_64_BIT));
    }
    let Some(running) = seize(pid, tid)? else { return Ok(None) };
    // One that has ended meanwhile is noticed by the wait.
    let _ = running.interrupt();
    let stopped = match wait_one(pid, running, until)? {
        Ok(Some(stopped)) => stopped,
        Ok(None) => return Ok(None),
        Err(_running) => return Err(does_not_stop(pid, tid)),
    };
    let mut regs = stopped.regs().reading(pid, "registers")?;
    if regs.cs != USER_CS {
        return Err(Refusal::unsupported(pid, "has a thread in 32-bit code", ONLY_64_BIT));
    }
    let is_rewound = rewind::rewind(&mut regs);
    if registers::abort_section(&stopped, &mut regs) || is_rewound {
        stopped.set_regs(&regs).reading(pid, "registers")?;
    }
    Ok(Some(stopped))
}

fn has_ended(pid: Pid, tid: Pid) -> bool {
    ProcDir::thread(pid, tid).stat().map_or(true, |stat| matches!(stat.state(), 'Z' | 'X'))
}

fn not_traceable(pid: Pid, tid: Pid, error: &std::io::Error) -> Refusal {
    let tracer =
        ProcDir::thread(pid, tid).status().ok().and_then(|s| s.decimal("TracerPid").ok()).unwrap_or(0);
    if tracer != 0 {
        return Refusal::Traced(format!(
            "process {} is being traced by process {}; checkpoints go on when that lets go of it",
            named(pid),
            named(Pid::from_raw(tracer as i32))
        ));
    }
    if let Err(kept) = yama::of(pid) {
        return Refusal::Traced(format!("cannot trace process {}: {kept}", named(pid)));
    }
    let looked_at = ProcDir::process(reached_by(pid)).link("exe");
    if looked_at.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
        return Refusal::Traced(format!(
            "process {} is closed to its user's others: it has closed itself (PR_SET_DUMPABLE), or executes a set-user-id \
             program, or one that may not be read",
            named(pid)
        ));
    }
    Refusal::Traced(format!("cannot trace thread {tid} of process {}: {error}", named(pid)))
}

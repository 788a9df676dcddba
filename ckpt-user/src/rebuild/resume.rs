//! The last steps: nothing of ours stays in the address spaces, registers are set, everyone is let go.

use super::process::RebuiltProcess;
use super::{RebuildError, Rebuilding, Tracked, fill};
use crate::image::Chain;
use crate::record::Thread;
use crate::sys::inject::Call;
use crate::sys::ptrace::Stopped;
use crate::sys::remote::Remote;
use crate::task::clock::Shift;
use crate::task::registers::{self, Registers};
use crate::task::{dispatch, limits, posix_timers, signals, sleep, timers};
use std::io;

/// Runs every process; children first, so that no parent sees a child that is not there yet.
pub fn resume(processes: Vec<RebuiltProcess>, chain: &Chain) -> Result<Vec<Tracked>, RebuildError> {
    let mut ready: Vec<(i32, Vec<Stopped>)> = Vec::new();
    let mut tracked = Vec::new();
    for mut process in processes {
        let pid = process.record.pid;
        finish(&mut process).rebuilding(pid, "its last state")?;
        let mut stopped = Vec::new();
        let id = process.pid();
        let gadget = process.gadget;
        for (thread, remote) in process.record.threads.iter().zip(process.threads) {
            if let Some(status) = thread.ended {
                remote.end_thread(gadget, status, true).rebuilding(pid, "its first thread")?;
                continue;
            }
            stopped.push(remote.into_thread().rebuilding(pid, "a thread")?);
        }
        tracked.push(Tracked {
            pid: id,
            space: process.record.space,
            watch: process.watch,
            saved: fill::stored(&process.record, chain),
            zero: fill::zeros(&process.record, chain),
        });
        ready.push((pid, stopped));
    }
    for (pid, stopped) in ready.into_iter().rev() {
        for thread in stopped {
            match thread.detach() {
                // A thread that ran on before this one may have ended the process.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                detached => detached.rebuilding(pid, "a thread")?,
            }
        }
    }
    Ok(tracked)
}

fn finish(process: &mut RebuiltProcess) -> io::Result<()> {
    let gadget = process.gadget;
    let scratch = process.threads[0].scratch();
    let shift = Shift::of(process.pid())?;
    posix_timers::rebuild(&process.record.posix_timers, &mut process.threads, shift)?;
    timers::rebuild(&process.record.timers, &mut process.threads[0])?;
    let mut wanted = Vec::with_capacity(process.threads.len());
    let lives = |(thread, _): &(&Thread, &mut Remote)| thread.ended.is_none();
    for (thread, remote) in process.record.threads.iter().zip(&mut process.threads).filter(lives) {
        let regs = registers_of(thread)?.regs()?;
        wanted.push(sleep::rebuild(thread.sleep.as_ref(), regs, remote, gadget, shift)?);
    }
    signals::rebuild_trap(&process.record.actions, &mut process.threads[0], gadget)?;
    pending_traps(process)?;
    limits::rebuild_last(&process.record.limits, &mut process.threads[0], gadget)?;
    let unmap = Call::new(libc::SYS_munmap, &[scratch.start, scratch.end - scratch.start]);
    let result = process.threads[0].step(gadget, unmap)?;
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    if process.record.job_stop != 0 {
        // Before its signals are unblocked. Whatever had stopped it: SIGTSTP and the like do nothing in an orphaned process group.
        let pid = process.pid();
        let mut living = process.record.threads.iter().zip(&mut process.threads).filter(lives);
        living.next().map_or(Ok(()), |(_, remote)| remote.stop(gadget, pid))?;
    }
    let living = process.record.threads.iter().zip(&mut process.threads).filter(lives);
    for ((thread, remote), wanted) in living.zip(wanted) {
        // Only at such a stop does the kernel look at interrupted system calls again.
        remote.settle()?;
        registers::rebuild_xstate(registers_of(thread)?, remote.thread()?)?;
        remote.thread()?.set_regs(&wanted)?;
        if let Some(own) = &thread.signals {
            remote.thread()?.set_sigmask(own.mask)?;
        }
        if let Some(dispatch) = &thread.dispatch {
            dispatch::rebuild(dispatch, remote.thread()?)?;
        }
    }
    Ok(())
}

/// The SIGTRAPs that wait: one that was not blocked would be taken for the end of a call list.
fn pending_traps(process: &mut RebuiltProcess) -> io::Result<()> {
    let (pid, gadget) = (process.record.pid as u64, process.gadget);
    process.threads.iter().try_for_each(Remote::block_all)?;
    for (thread, remote) in process.record.threads.iter().zip(&mut process.threads) {
        let own = thread.signals.as_ref().map_or(&[][..], |signals| &signals.pending);
        signals::rebuild_pending_trap((own, &[]), remote, gadget, (pid, thread.tid as u64))?;
    }
    let all = (&[][..], &process.record.pending[..]);
    signals::rebuild_pending_trap(all, &mut process.threads[0], gadget, (pid, pid))
}

fn registers_of(thread: &Thread) -> io::Result<&Registers> {
    thread.registers.as_ref().ok_or_else(|| io::Error::other("a thread has no registers"))
}

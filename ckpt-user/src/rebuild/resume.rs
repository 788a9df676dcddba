//! The last steps: nothing of ours stays in the address spaces, registers are set, everyone is let go.

use super::process::RebuiltProcess;
use super::{RebuildError, Rebuilding, Tracked, fill};
use crate::image::Chain;
use crate::sys::inject::Call;
use crate::sys::ptrace::Stopped;
use crate::sys::regs::{self, Restart};
use crate::sys::remote::Remote;
use crate::task::signals;
use std::io;

/// Runs every process; children first, so that no parent sees a child that is not there yet.
pub fn resume(processes: Vec<RebuiltProcess>, chain: &Chain) -> Result<Vec<Tracked>, RebuildError> {
    let mut ready: Vec<(i32, Vec<Stopped>)> = Vec::new();
    let mut tracked = Vec::new();
    let mut stopped_jobs = Vec::new();
    for mut process in processes {
        let pid = process.record.pid;
        if process.record.job_stop != 0 {
            stopped_jobs.push((process.pid(), process.record.job_stop));
        }
        finish(&mut process).rebuilding(pid, "its last state")?;
        let mut stopped = Vec::new();
        let id = process.pid();
        for remote in process.threads {
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
    for (pid, job_stop) in stopped_jobs {
        // Delivered when the process runs on, before its first instruction.
        let signal =
            nix::sys::signal::Signal::try_from(job_stop).unwrap_or(nix::sys::signal::Signal::SIGSTOP);
        nix::sys::signal::kill(pid, signal).map_err(io::Error::from).rebuilding(pid.as_raw(), "its stop")?;
    }
    for (pid, stopped) in ready.into_iter().rev() {
        for thread in stopped {
            thread.detach().rebuilding(pid, "a thread")?;
        }
    }
    Ok(tracked)
}

fn finish(process: &mut RebuiltProcess) -> io::Result<()> {
    let gadget = process.gadget;
    let scratch = process.threads[0].scratch();
    signals::rebuild_trap(&process.record.actions, &mut process.threads[0], gadget)?;
    let unmap = Call::new(libc::SYS_munmap, &[scratch.start, scratch.end - scratch.start]);
    let result = process.threads[0].step(gadget, unmap)?;
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    for (thread, remote) in process.record.threads.iter().zip(&mut process.threads) {
        let registers =
            thread.registers.as_ref().ok_or_else(|| io::Error::other("a thread has no registers"))?;
        registers_of(registers, remote)?;
        if let Some(own) = &thread.signals {
            remote.thread()?.set_sigmask(own.mask)?;
        }
    }
    Ok(())
}

fn registers_of(registers: &crate::task::registers::Registers, remote: &mut Remote) -> io::Result<()> {
    // Only at such a stop does the kernel look at interrupted system calls again.
    remote.settle()?;
    let mut wanted = registers.regs()?;
    if regs::restart_of(&wanted) == Restart::Block {
        // The new thread has no restart block: the call is issued again.
        wanted.rax = wanted.orig_rax;
        wanted.orig_rax = u64::MAX;
        wanted.rip -= 2;
    }
    remote.thread()?.set_xstate(&registers.xstate)?;
    remote.thread()?.set_regs(&wanted)
}

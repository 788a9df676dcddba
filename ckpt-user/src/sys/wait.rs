//! Children of this process: waiting, signalling, letting go.

use super::ptrace::{self, Stop};
use crate::job::ended::Ended;
use crate::task::proc::{self, ProcDir, reached_by};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

thread_local! {
    /// Ends that waiting for a stop has come upon: of children, too, whose status no second wait tells.
    static KEPT: RefCell<Vec<(Pid, i32)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the status (waitpid(2)) of what has ended while its stop was waited for, for [`next_change`] and [`unreaped`].
pub(super) fn keep(pid: Pid, status: i32) {
    KEPT.with_borrow_mut(|kept| kept.push((pid, status)));
}

/// What happened to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Ended(Ended),
    /// Job control stopped it.
    Stopped,
    /// It stands at a ptrace stop that nobody waits for.
    TraceStop(Stop),
    Continued,
}

/// The next change of any child, or of any thread that this thread traces; `None` when nothing has happened.
///
/// # Errors
/// ECHILD when there is no child left.
pub fn next_change() -> io::Result<Option<(Pid, Change)>> {
    if let Some((pid, status)) = KEPT.with_borrow_mut(Vec::pop) {
        return Ok(Some((pid, Change::Ended(Ended::from_wait(status)))));
    }
    let mut status = 0;
    let flags = libc::__WALL | libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    // SAFETY: `status` outlives the call; waitpid writes nothing else.
    let pid = super::check(i64::from(unsafe { libc::waitpid(-1, &raw mut status, flags) }))?;
    if pid == 0 {
        return Ok(None);
    }
    let pid = Pid::from_raw(pid as i32);
    let change = if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
        Change::Ended(Ended::from_wait(status))
    } else if libc::WIFCONTINUED(status) {
        Change::Continued
    } else if is_traced_by_us(pid) {
        Change::TraceStop(ptrace::classify(status))
    } else {
        Change::Stopped
    };
    Ok(Some((pid, change)))
}

/// Waits for the next child that ends, stops or continues: its id and the raw status (waitpid(2)).
///
/// # Errors
/// ECHILD when there is no child left.
pub fn any_child() -> io::Result<(Pid, i32)> {
    let mut status = 0;
    let flags = libc::__WALL | libc::WUNTRACED | libc::WCONTINUED;
    // SAFETY: `status` outlives the call; waitpid writes nothing else.
    let pid = super::check(i64::from(unsafe { libc::waitpid(-1, &raw mut status, flags) }))?;
    Ok((Pid::from_raw(pid as i32), status))
}

/// Waits for the end of one child.
///
/// # Errors
/// ECHILD when it is none.
pub fn for_end(child: Pid) -> io::Result<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call; waitpid writes nothing else.
        match super::check(i64::from(unsafe { libc::waitpid(child.as_raw(), &raw mut status, libc::__WALL) }))
        {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            waited => return waited.map(|_| Ended::from_wait(status)),
        }
    }
}

/// How a child has ended that nobody has reaped yet.
pub fn unreaped(pid: Pid) -> Option<Ended> {
    let kept = KEPT.with_borrow(|kept| kept.iter().find(|one| one.0 == pid).map(|one| one.1));
    if let Some(status) = kept {
        return Some(Ended::from_wait(status));
    }
    // SAFETY: all-zero is a valid siginfo_t (plain integers); with WNOHANG it stays so when nothing has happened.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call; waitid writes nothing else.
    let result = unsafe { libc::waitid(libc::P_PID, pid.as_raw() as u32, &raw mut info, flags) };
    // SAFETY: waitid has filled the fields of a SIGCHLD, or left zeros.
    let (ended, status) = unsafe { (info.si_pid() == pid.as_raw(), info.si_status()) };
    let how = if info.si_code == libc::CLD_EXITED { status << 8 } else { status };
    (result == 0 && ended).then_some(Ended::from_wait(how))
}

/// How a process has ended that is another's child, while that has not waited for it: field 52 of stat, of a zombie, is that of
/// wait(2) (proc_pid_stat(5)).
pub fn of_zombie(pid: Pid) -> Option<Ended> {
    let zombie = ProcDir::process(pid).stat().ok().filter(|stat| stat.state() == 'Z');
    zombie.map(|zombie| Ended::from_wait(zombie.number(52) as i32))
}

/// Whether the calling thread is its tracer.
pub fn is_traced_by_us(tid: Pid) -> bool {
    let status = ProcDir::process(tid).status();
    // SAFETY: gettid takes nothing and cannot fail.
    let own = unsafe { libc::gettid() };
    status.and_then(|s| s.decimal("TracerPid")).is_ok_and(|tracer| tracer == own as u64)
}

/// Sends a signal by number (real-time ones included); a process that is gone gets none.
pub fn send(pid: Pid, signal: i32) {
    // SAFETY: two integers.
    unsafe { libc::kill(pid.as_raw(), signal) };
}

/// Ends those of `ids` that this thread traces, and nobody else; returns when nothing is left of them, or after `patience`. Reaps
/// whatever child ends meanwhile.
pub fn end_all(ids: &[Pid], patience: Duration) {
    let until = Instant::now() + patience;
    loop {
        let left: Vec<Pid> = ids.iter().copied().filter(|&pid| is_traced_by_us(pid)).collect();
        if left.is_empty() || Instant::now() > until {
            return;
        }
        left.into_iter().for_each(|pid| send(pid, libc::SIGKILL));
        // SAFETY: a null status is allowed; waitpid writes nothing else.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) } > 0 {}
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the process exists and has not ended.
pub fn is_alive(pid: Pid) -> bool {
    ProcDir::process(pid).stat().is_ok_and(|stat| proc::is_alive_here(pid, &stat))
}

/// Whether job control has stopped it.
pub fn is_stopped(pid: Pid) -> bool {
    ProcDir::process(reached_by(pid)).stat().is_ok_and(|s| s.state() == 'T')
}

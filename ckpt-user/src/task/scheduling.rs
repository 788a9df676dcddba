//! Scheduling of one thread: policy, priority, nice value, affinity, I/O priority, timer slack.

use super::proc::ProcDir;
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;

/// sched_getattr(2), sched_getaffinity(2), ioprio_get(2) and /proc/PID/timerslack_ns of one thread.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Scheduling {
    /// `struct sched_attr` as the kernel gave it.
    #[prost(bytes = "vec", tag = "1")]
    pub attributes: Vec<u8>,
    /// CPU mask, little-endian bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub affinity: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub io_priority: u32,
    /// Nanoseconds.
    #[prost(uint64, optional, tag = "4")]
    pub timer_slack: Option<u64>,
}

/// Which class schedules a thread (sched(7)), with what ranks it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// SCHED_OTHER, SCHED_BATCH, SCHED_IDLE and SCHED_EXT: the nice value.
    Fair(i32),
    /// SCHED_FIFO and SCHED_RR: the priority.
    RealTime(u32),
    /// SCHED_DEADLINE, or one that is not known: its number.
    Other(u32),
}

impl Scheduling {
    /// None where the attributes are too short for one.
    pub fn policy(&self) -> Option<Policy> {
        // struct sched_attr: size, policy, flags (64 bits), nice, priority.
        let word = |at: usize| Some(u32::from_le_bytes(self.attributes.get(at..at + 4)?.try_into().ok()?));
        let (policy, nice, priority) = (word(4)?, word(16)?.cast_signed(), word(20)?);
        Some(match policy {
            0 | 3 | 5 | 7 => Policy::Fair(nice),
            1 | 2 => Policy::RealTime(priority),
            other => Policy::Other(other),
        })
    }

    /// IOPRIO_CLASS_RT (ioprio_set(2)).
    pub fn is_real_time_io(&self) -> bool {
        self.io_priority >> 13 == 1
    }
}

pub fn capture(pid: Pid, tid: Pid) -> io::Result<Scheduling> {
    let slack = ProcDir::thread(pid, tid)
        .text("timerslack_ns")
        .or_else(|_| ProcDir::process(tid).text("timerslack_ns"));
    Ok(Scheduling {
        attributes: crate::sys::sched::attributes(tid)?,
        affinity: crate::sys::sched::affinity(tid)?,
        io_priority: crate::sys::sched::io_priority(tid)?,
        timer_slack: slack.ok().and_then(|t| t.trim().parse().ok()),
    })
}

/// Whether a thread has chosen its processors: they are not those that its program had begun with (`first`).
fn has_chosen(affinity: &[u8], first: &[u8]) -> bool {
    let trimmed = |mask: &[u8]| mask.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    affinity[..trimmed(affinity)] != first[..trimmed(first)]
}

/// Gives the calling thread the recorded scheduling. CPUs that this machine lacks are left out; who had all that its program had
/// begun with (`first_cpus`) has all that ckptbpf has now.
pub fn rebuild(wanted: &Scheduling, first_cpus: &[u8], remote: &mut Remote) -> io::Result<()> {
    const PR_SET_TIMERSLACK: u64 = 29;
    if has_chosen(&wanted.affinity, first_cpus) {
        let affinity = remote.data(&wanted.affinity)?;
        let set = Call::new(libc::SYS_sched_setaffinity, &[0, wanted.affinity.len() as u64, affinity]);
        // Another machine may have other CPUs: an affinity that fits none of them is not kept.
        remote.run(&[set])?;
    }
    let attributes = remote.data(&wanted.attributes)?;
    let mut calls = vec![Call::new(libc::SYS_ioprio_set, &[1, 0, u64::from(wanted.io_priority)])];
    if let Some(slack) = wanted.timer_slack {
        calls.push(Call::new(libc::SYS_prctl, &[PR_SET_TIMERSLACK, slack, 0, 0, 0]));
    }
    calls.push(Call::new(libc::SYS_sched_setattr, &[0, attributes, 0]));
    for (call, result) in calls.iter().zip(remote.run(&calls)?) {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result as i32);
            return Err(io::Error::new(error.kind(), format!("system call {} failed: {error}", call.number)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::has_chosen;

    #[test]
    fn processors_are_chosen_where_they_are_not_those_of_the_beginning() {
        assert!(!has_chosen(&[0xff, 0x0f], &[0xff, 0x0f]));
        // Kernels differ in how long a mask is.
        assert!(!has_chosen(&[0xff, 0x0f, 0, 0], &[0xff, 0x0f]));
        assert!(has_chosen(&[0xff], &[0xff, 0x0f]));
        assert!(has_chosen(&[0xff, 0x0f], &[0x0f]));
        assert!(has_chosen(&[1], &[]), "not known");
    }
}

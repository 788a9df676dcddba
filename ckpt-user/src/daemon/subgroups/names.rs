//! Names of users' groups: those of two daemons are never the same, and tell whose they are.

use crate::job::process::ProcessId;
use std::io;

const BEGIN: &str = "ckptbpf-";

/// Names of one daemon's: `ckptbpf-77-9001-u1000`, by its process id and start time.
#[derive(Debug, Clone, Copy)]
pub struct Names(ProcessId);

impl Names {
    /// This process's.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn own() -> io::Result<Self> {
        ProcessId::current().map(Self)
    }

    pub fn of_user(&self, uid: u32) -> String {
        let ProcessId { pid, start_time } = self.0;
        format!("{BEGIN}{pid}-{start_time}-u{uid}")
    }

    /// Whether it is a group of a daemon that is gone. One of another pid namespace may look as if it were: it makes an empty group anew
    /// that it misses.
    pub fn is_left_over(&self, name: &str) -> bool {
        daemon_of(name).is_some_and(|daemon| daemon != self.0 && !daemon.runs())
    }
}

/// Whose group it is, if it is a daemon's.
fn daemon_of(name: &str) -> Option<ProcessId> {
    let mut parts = name.strip_prefix(BEGIN)?.split('-');
    let (pid, start_time, user) = (parts.next()?, parts.next()?, parts.next()?);
    user.strip_prefix('u')?.parse::<u32>().ok()?;
    let daemon = ProcessId { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? };
    (daemon.pid > 0 && parts.next().is_none()).then_some(daemon)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_group_s_name_tells_its_daemon_and_only_those_of_ones_that_are_gone_are_left_over() {
        let names = Names::own().unwrap();
        let own = names.of_user(1000);
        assert_eq!(daemon_of(&own), Some(names.0));
        assert!(!names.is_left_over(&own));
        let gone = Names(ProcessId { start_time: names.0.start_time + 1, ..names.0 });
        assert!(names.is_left_over(&gone.of_user(1000)));
        assert!(!gone.is_left_over(&own), "one that runs");
        for foreign in ["ckptbpf", "ckptbpf-job-of-77", "ckptbpf-1-2-3", "ckptbpf-1-2-u3-4", "ckptbpf-0-1-u"]
        {
            assert_eq!(daemon_of(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn no_name_is_too_strange(name in "(ckptbpf-)?[0-9u-]{0,40}") {
            let _ = daemon_of(&name);
        }
    }
}

//! Process ids across pid namespaces: eBPF sees those of the initial one, we, in a container, our own.
use std::{collections::HashMap, fs, os::unix::fs::MetadataExt as _};

use ckpt_common::{PID_LEVELS, TaskIds};

use super::BpfError;

/// Inode of the initial pid namespace (kernel: `PROC_PID_INIT_INO`).
pub const INITIAL_PID_NAMESPACE: u32 = 0xEFFF_FFFC;

const OWN: &str = "/proc/self/ns/pid";

/// Inode of the pid namespace that we are in.
///
/// # Errors
/// `/proc` is not mounted.
pub fn own_pid_namespace() -> Result<u32, BpfError> {
    let proc = |source| BpfError::Proc { path: OWN, source };
    let inode = fs::metadata(OWN).map_err(proc)?.ino();
    u32::try_from(inode).map_err(|_| proc(std::io::ErrorKind::InvalidData.into()))
}

/// Ids of every thread that is visible in one pid namespace, at the moment it was made.
#[derive(Clone, Debug, Default)]
pub struct PidTable {
    to_host: HashMap<u32, u32>,
    to_own: HashMap<u32, u32>,
}

impl PidTable {
    /// From rows of threads, for the namespace with that inode.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a TaskIds>, namespace: u32) -> Self {
        let mut table = Self::default();
        for row in rows {
            if let Some(own) = number_in(row, namespace) {
                table.to_host.insert(own, row.pid);
                table.to_own.insert(row.pid, own);
            }
        }
        table
    }

    /// The host's id of a thread or process of ours.
    #[must_use]
    pub fn host(&self, own: u32) -> Option<u32> {
        self.to_host.get(&own).copied()
    }

    /// Our id of a thread or process that the host calls so.
    #[must_use]
    pub fn own(&self, host: u32) -> Option<u32> {
        self.to_own.get(&host).copied()
    }
}

/// The thread's number in a namespace, `None` if it is not visible there (or nested deeper than rows show).
fn number_in(row: &TaskIds, namespace: u32) -> Option<u32> {
    let count = usize::try_from(row.level_count).unwrap_or(PID_LEVELS).min(PID_LEVELS);
    row.levels[..count].iter().find(|level| level.namespace == namespace).map(|level| level.number)
}

#[cfg(test)]
mod tests {
    use ckpt_common::PidAtLevel;
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn numbers_are_those_of_the_namespace_asked_for() {
        let mut row = TaskIds::new_zeroed();
        row.pid = 4711;
        row.level_count = 2;
        row.levels[0] = PidAtLevel { namespace: INITIAL_PID_NAMESPACE, number: 4711 };
        row.levels[1] = PidAtLevel { namespace: 7, number: 3 };
        let inner = PidTable::new([&row], 7);
        assert_eq!((inner.host(3), inner.own(4711)), (Some(4711), Some(3)));
        assert_eq!(PidTable::new([&row], INITIAL_PID_NAMESPACE).host(4711), Some(4711));
        assert_eq!(PidTable::new([&row], 8).own(4711), None);
    }
}

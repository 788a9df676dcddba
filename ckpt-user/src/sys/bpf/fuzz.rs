//! The parts of [`crate::fuzz`] that stand in here: what comes out of the kernel's rings and iterators, and the file of
//! offsets.

use super::{PidTable, cache, iterators, restart};
use ckpt_common::{FileRow, LifecycleEvent, ProcessRow, SigActionsRow, TaskRow, VmaRow, WaitRow, WriteFault};

/// Records of both rings.
pub(crate) fn events(bytes: &[u8]) -> (Vec<LifecycleEvent>, Vec<WriteFault>) {
    (iterators::of_bytes(bytes).unwrap_or_default(), iterators::of_bytes(bytes).unwrap_or_default())
}

/// Rows of each iterator; of threads and mappings they are handed on.
pub(crate) fn rows(bytes: &[u8]) -> (Vec<TaskRow>, Vec<VmaRow>) {
    let _ = iterators::of_bytes::<ProcessRow>(bytes);
    let _ = iterators::of_bytes::<SigActionsRow>(bytes);
    let _ = iterators::of_bytes::<FileRow>(bytes);
    let _ = iterators::of_bytes::<WaitRow>(bytes);
    let tasks: Vec<TaskRow> = iterators::of_bytes(bytes).unwrap_or_default();
    let table = PidTable::new(tasks.iter().map(|row| &row.ids), 0);
    for row in &tasks {
        let _ = table.own(row.ids.pid);
    }
    (tasks, iterators::of_bytes(bytes).unwrap_or_default())
}

/// A file of offsets, and what is looked for in /proc/kallsyms.
pub(crate) fn offsets(bytes: &[u8]) {
    let _ = cache::parse(bytes);
    let _ = restart::functions(bytes, &[("do_restart_poll", ())]);
}

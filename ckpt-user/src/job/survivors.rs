//! Processes of a checkpoint that still run: a restart beside them would be a second one of each.

use anyhow::bail;
use nix::unistd::Pid;

use super::process::ProcessId;
use super::record::JobRecord;
use crate::machine;
use crate::rebuild::taken;
use crate::record::{Image, Instance};
use crate::task::outside;

/// Refuses an image of which a process goes on here, whatever has become of its first one and of ckptbpf.
pub fn refuse(image: &Image) -> anyhow::Result<()> {
    let of_this_boot = |boot: &str| !boot.is_empty() && boot == machine::boot_id();
    if !image.machine.as_ref().is_some_and(|made_on| of_this_boot(&made_on.boot_id)) {
        return Ok(());
    }
    let known = image.processes.iter().filter_map(|process| process.instance);
    refuse_any(known.map(|Instance { pid, start_time }| ProcessId { pid, start_time }))
}

/// The same of the last restart's processes, of which there may be no checkpoint yet.
pub fn refuse_restarted(record: &JobRecord) -> anyhow::Result<()> {
    if record.ended.is_some() || record.here.boot_id.is_empty() || record.here.boot_id != machine::boot_id() {
        return Ok(());
    }
    refuse_any(record.restarted.iter().copied())
}

/// What a restart has made, but for the first one, which its record names by itself; no more than the record has room for.
pub fn beside(first: Pid, made: &[Pid]) -> Vec<ProcessId> {
    const ROOM: usize = 8192;
    let others = made.iter().filter(|pid| **pid != first).take(ROOM);
    others.filter_map(|pid| ProcessId::of(pid.as_raw()).ok()).collect()
}

fn refuse_any(mut known: impl Iterator<Item = ProcessId>) -> anyhow::Result<()> {
    let left = known.find(|process| process.goes_on(taken::WAIT));
    let Some(ProcessId { pid, .. }) = left else { return Ok(()) };
    let name = outside::read(&format!("{pid}/comm")).unwrap_or_default();
    bail!(
        "process {pid} ({}) of this checkpoint still runs, and would be there twice; end it first: kill {pid}",
        String::from_utf8_lossy(&name).trim_end()
    )
}

//! Processes of a checkpoint that still run: a restart beside them would be a second one of each.

use anyhow::bail;

use super::process::ProcessId;
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
    let left = image.processes.iter().filter_map(|process| process.instance).find(goes_on);
    let Some(Instance { pid, .. }) = left else { return Ok(()) };
    let name = outside::read(&format!("{pid}/comm")).unwrap_or_default();
    bail!(
        "process {pid} ({}) of this checkpoint still runs, and would be there twice; end it first: kill {pid}",
        String::from_utf8_lossy(&name).trim_end()
    )
}

fn goes_on(instance: &Instance) -> bool {
    ProcessId { pid: instance.pid, start_time: instance.start_time }.goes_on(taken::WAIT)
}

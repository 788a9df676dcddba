//! Memory policies of ranges (mbind(2)): from which NUMA nodes the pages of a mapping come.
//!
//! Only the process itself may ask for one (get_mempolicy(2)); where BPF tells which mappings have one, no other is asked
//! for. Memory of tmpfs has its policies in the object: they are given again through the mappings that were given them.

use super::vma::{Kind, Raw, Vma};
use crate::record::{Process, SharedObject};
use crate::refusal::Refusal;
use crate::sys::bpf::VmaRow;
use crate::sys::remote::Remote;
use crate::task::policy::{NODES, allowed, of_nodes_here, say_other};
use nix::unistd::Pid;
use std::collections::{BTreeSet, HashMap};
use std::io;

/// What BPF tells of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// It was given a policy.
    own: bool,
    /// The object behind it has policies, whoever gave them.
    object: bool,
    /// set_mempolicy_home_node(2).
    home: Option<u32>,
}

/// Says of each mapping what BPF has found; both ascend.
pub fn note(raws: &mut [Raw], rows: &[VmaRow]) {
    for raw in raws {
        let at = rows.binary_search_by_key(&raw.start, |row| row.start);
        raw.policy = at.ok().map(|at| &rows[at]).filter(|row| row.end == raw.end).map(|row| Seen {
            own: row.policy != 0,
            object: row.shared_policies != 0,
            home: u32::try_from(row.home_node).ok(),
        });
    }
}

/// The mappings that have a policy, or may have one, by index, with what is known of it.
pub fn to_ask(mappings: &[Vma], known: Option<&[Raw]>) -> Vec<(usize, Option<u32>)> {
    let ask = |(index, vma): (usize, &Vma)| {
        let seen = seen(vma, known);
        let may = seen.is_none_or(|seen| seen.own) && !matches!(vma.kind(), Kind::Vdso | Kind::Vvar);
        may.then(|| (index, seen.and_then(|seen| seen.home)))
    };
    mappings.iter().enumerate().filter_map(ask).collect()
}

fn seen(vma: &Vma, known: Option<&[Raw]>) -> Option<Seen> {
    let known = known?;
    let at = known.binary_search_by_key(&vma.start, |raw| raw.start).ok()?;
    known[at].policy
}

/// # Errors
/// Names shared memory that has policies which no mapping was given: nobody tells of which ranges.
pub fn check(
    processes: &[Process],
    known: &HashMap<Pid, Vec<Raw>>,
    objects: &[SharedObject],
) -> Result<(), Refusal> {
    let of = |process: &Process| known.get(&Pid::from_raw(process.pid)).map(Vec::as_slice);
    let own = |process: &Process, vma: &Vma| seen(vma, of(process)).is_some_and(|seen| seen.own);
    let all = || processes.iter().flat_map(|p| p.mappings.iter().map(move |v| (p, v)));
    let given: BTreeSet<u32> = all().filter(|(p, v)| own(p, v)).filter_map(|(_, v)| v.object).collect();
    for (process, vma) in all() {
        let Some(object) = vma.object else { continue };
        let has = seen(vma, of(process)).is_some_and(|seen| seen.object);
        // A file keeps its own.
        let is_file = objects.get(object as usize).is_some_and(|o| o.file.is_some());
        if has && !is_file && !given.contains(&object) {
            return Err(Refusal::unsupported(
                Pid::from_raw(process.pid),
                format!("has the mapping {:x}-{:x}", vma.start, vma.end),
                "its memory policies (mbind(2)) were given through a mapping that is gone",
            ));
        }
    }
    Ok(())
}

/// Gives the skeleton's mappings their policies, before they have pages.
pub fn rebuild(mappings: &[Vma], remote: &mut Remote) -> io::Result<()> {
    const SYS_SET_MEMPOLICY_HOME_NODE: i64 = 450;
    for vma in mappings {
        let Some(policy) = &vma.policy else { continue };
        let failed = |call: &str, e: io::Error| {
            io::Error::new(e.kind(), format!("the memory policy of {:x} ({call}): {e}", vma.start))
        };
        let (start, len) = (vma.start, vma.end - vma.start);
        let nodes = policy.nodes.get(..NODES).unwrap_or(&policy.nodes);
        let bind = |remote: &mut Remote, nodes: &[u8]| {
            let at = remote.data(nodes)?;
            // The kernel takes one bit less than it is told.
            let bits = 8 * nodes.len() as u64 + 1;
            remote.call(libc::SYS_mbind, &[start, len, u64::from(policy.mode), at, bits, 0]).map(drop)
        };
        let mut is_other = of_nodes_here(remote, nodes, bind, allowed).map_err(|e| failed("mbind(2)", e))?;
        if let Some(home) = policy.home {
            match remote.call(SYS_SET_MEMPOLICY_HOME_NODE, &[start, len, u64::from(home), 0]) {
                // There is no such node here.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => is_other = true,
                done => done.map(drop).map_err(|e| failed("set_mempolicy_home_node(2)", e))?,
            }
        }
        if is_other {
            say_other();
        }
    }
    Ok(())
}

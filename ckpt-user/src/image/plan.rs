//! Which generations a prune keeps, merges and deletes. Pure.
//!
//! ```text
//! 1 ◀─ 2 ◀─ 3 ◀─ 8 ◀─ 9   newest tip 9, keep 3: 9, 8, 3 stay, 3 becomes full; 7 … 4, then 2, 1 go
//!           ▲
//!           └─ 4 ◀─ … ◀─ 7    an old branch, left by a restart at 3
//! ```

use super::GenerationId;
use std::collections::{BTreeMap, BTreeSet};

/// One file of the directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) id: GenerationId,
    /// `None` also where it cannot be read.
    pub(super) parent: Option<GenerationId>,
    /// It opens, and so do its ancestors.
    pub(super) restartable: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The newest restartable ones on the way to the newest tip, newest first.
    pub(super) kept: Vec<GenerationId>,
    /// The oldest kept one, when it has to become full.
    pub(super) merge: Option<GenerationId>,
    /// Newest first, so that whatever remains after a crash still has its ancestors.
    pub(super) delete: Vec<GenerationId>,
    /// What would have been merged or deleted if it, or a descendant, were not in use.
    pub(super) held: Vec<GenerationId>,
}

/// `nodes`: the directory, by id. `in_use`: neither replaced nor deleted, nor are their ancestors.
///
/// Generations newer than all that is kept and not restartable stay: there is something to look into.
pub(super) fn plan(
    nodes: &BTreeMap<GenerationId, Node>,
    keep: usize,
    in_use: &BTreeSet<GenerationId>,
) -> Plan {
    let parent = |id: &GenerationId| nodes.get(id).and_then(|node| node.parent);
    let ancestry = |id| std::iter::successors(Some(id), parent).take(nodes.len());
    let Some(tip) = nodes.values().rev().find(|node| node.restartable) else {
        return Plan::default();
    };
    let kept: Vec<GenerationId> = ancestry(tip.id).take(keep.max(1)).collect();
    let Some(&base) = kept.last() else { return Plan::default() };
    let merge = (parent(&base).is_some() && !in_use.contains(&base)).then_some(base);
    let mut needed: BTreeSet<GenerationId> = kept.iter().copied().collect();
    for &id in in_use.iter().chain([&base]) {
        // What a merged generation had as ancestors is in it.
        for id in ancestry(id) {
            needed.insert(id);
            if merge == Some(id) {
                break;
            }
        }
    }
    let obsolete = |node: &&Node| node.restartable || node.id < base;
    let (mut delete, mut held) = (Vec::new(), Vec::new());
    for node in nodes.values().rev().filter(obsolete).filter(|node| !kept.contains(&node.id)) {
        if needed.contains(&node.id) { held.push(node.id) } else { delete.push(node.id) }
    }
    if parent(&base).is_some() && merge.is_none() {
        held.insert(0, base);
    }
    Plan { kept, merge, delete, held }
}

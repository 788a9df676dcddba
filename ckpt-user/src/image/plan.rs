//! Which generations a prune keeps, merges and deletes. Pure.
//!
//! ```text
//! 1 ◀─ 2 ◀─ 3 ◀─ 8 ◀─ 9   newest tip 9, keep 3: 9, 8, 3 stay, 3 becomes full; 7 … 4, then 2, 1 go
//!           ▲
//!           └─ 4 ◀─ … ◀─ 7    an old branch, left by a restart at 3
//!
//! 1 ◀─ 2 ◀─ 3 ◀─ 4    5 ◀─ 6   newest tip 6, keep 4: 6, 5, then 4, 3 stay, 3 becomes full; 2, 1 go
//! ```
//! A full generation does not say which one it comes after: behind it come the newest of the others. What ends before there are
//! enough ends at a full one, or at one that is kept already; so only the last one kept can lack an ancestor.

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
    /// The newest tip and its ancestors, newest first; then the newest of what is left and its ancestors, and so on.
    pub(super) kept: Vec<GenerationId>,
    /// The last one kept, when it has to become full.
    pub(super) merge: Option<GenerationId>,
    /// Newest first, so that whatever remains after a crash still has its ancestors.
    pub(super) delete: Vec<GenerationId>,
    /// What would have been merged or deleted if it, or a descendant, were not in use.
    pub(super) held: Vec<GenerationId>,
}

/// `nodes`: the directory, by id. `in_use`: neither replaced nor deleted, nor are their ancestors.
///
/// Generations newer than the oldest kept one and not restartable stay: there is something to look into.
pub(super) fn plan(
    nodes: &BTreeMap<GenerationId, Node>,
    keep: usize,
    in_use: &BTreeSet<GenerationId>,
) -> Plan {
    let parent = |id: &GenerationId| nodes.get(id).and_then(|node| node.parent);
    let ancestry = |id| std::iter::successors(Some(id), parent).take(nodes.len());
    let kept = kept(nodes, keep.max(1), ancestry);
    let (Some(&base), Some(&oldest)) = (kept.last(), kept.iter().min()) else { return Plan::default() };
    let lacks_parent = parent(&base).is_some_and(|parent| !kept.contains(&parent));
    let merge = (lacks_parent && !in_use.contains(&base)).then_some(base);
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
    let obsolete = |node: &&Node| node.restartable || node.id < oldest;
    let (mut delete, mut held) = (Vec::new(), Vec::new());
    for node in nodes.values().rev().filter(obsolete).filter(|node| !kept.contains(&node.id)) {
        if needed.contains(&node.id) { held.push(node.id) } else { delete.push(node.id) }
    }
    if lacks_parent && merge.is_none() {
        held.insert(0, base);
    }
    Plan { kept, merge, delete, held }
}

/// As many as are wanted, where there are as many that can be restarted from: each tip with its ancestors, the newest tip first.
fn kept<A: Iterator<Item = GenerationId>>(
    nodes: &BTreeMap<GenerationId, Node>,
    wanted: usize,
    ancestry: impl Fn(GenerationId) -> A,
) -> Vec<GenerationId> {
    let mut kept = Vec::new();
    for tip in nodes.values().rev().filter(|node| node.restartable) {
        for id in ancestry(tip.id) {
            if kept.len() == wanted {
                return kept;
            }
            if kept.contains(&id) {
                break;
            }
            kept.push(id);
        }
    }
    kept
}

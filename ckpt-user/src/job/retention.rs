//! Which generations stay. Pure: the files are `image`'s to merge and delete.
//!
//! Generations form a tree by parent. The newest `keep` that are complete stay restartable; what they inherit
//! from stays with them, unless merging makes it unnecessary; what is in use (a lazy restart reads from it) is
//! never touched.

use std::collections::{BTreeMap, BTreeSet};

/// How many restartable generations stay when nothing else is said.
pub const KEEP: usize = 3;
/// A restart opens one file a generation of the chain, and a reader looks a page up in as many indexes.
pub const LONGEST_CHAIN: usize = 16;

/// One generation, as far as retention is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub id: u64,
    /// The generation it is a delta to.
    pub parent: Option<u64>,
    /// Whether it can be restarted from, as far as its own file goes.
    pub complete: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Stay, and stay restartable.
    pub restartable: BTreeSet<u64>,
    /// Stay because something restartable or in use inherits from them.
    pub ancestors: BTreeSet<u64>,
    /// Go.
    pub delete: BTreeSet<u64>,
    /// The oldest restartable one, when its chain is long enough to be merged into one full generation.
    pub merge: Option<u64>,
}

/// Decides. `keep` of 0 counts as 1: the last checkpoint is never given up.
pub fn plan(generations: &[Kept], keep: usize, in_use: &BTreeSet<u64>) -> Plan {
    let by_id: BTreeMap<u64, Kept> = generations.iter().map(|one| (one.id, *one)).collect();
    let whole = |id: u64| {
        let chain = chain(&by_id, id);
        let root = chain.last().and_then(|last| by_id.get(last));
        root.is_some_and(|root| root.parent.is_none())
            && chain.iter().all(|id| by_id.get(id).is_some_and(|one| one.complete))
    };
    let newest = by_id.keys().rev().filter(|id| whole(**id));
    let mut plan = Plan { restartable: newest.take(keep.max(1)).copied().collect(), ..Plan::default() };
    for id in plan.restartable.iter().chain(in_use) {
        plan.ancestors.extend(chain(&by_id, *id));
    }
    plan.ancestors.retain(|id| !plan.restartable.contains(id) && by_id.contains_key(id));
    if !plan.restartable.is_empty() {
        // With nothing to restart from, even damaged files are all there is: nothing goes.
        let stays = |id: &&u64| plan.restartable.contains(id) || plan.ancestors.contains(id);
        plan.delete = by_id.keys().filter(|id| !stays(id)).copied().collect();
    }
    plan.merge = plan.restartable.first().copied().filter(|id| chain(&by_id, *id).len() > LONGEST_CHAIN);
    plan
}

/// A generation and what it inherits from, newest first. Ends at a gap; a parent is older by rule, so it ends.
fn chain(by_id: &BTreeMap<u64, Kept>, id: u64) -> Vec<u64> {
    let mut chain = Vec::new();
    let mut at = Some(id);
    while let Some(one) = at.and_then(|id| by_id.get(&id)) {
        chain.push(one.id);
        at = one.parent;
        if at.is_some_and(|parent| parent >= one.id) {
            break;
        }
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn deltas(parents: &[(u64, u64)]) -> Vec<Kept> {
        let one =
            |&(id, parent): &(u64, u64)| Kept { id, parent: Some(parent).filter(|p| *p > 0), complete: true };
        parents.iter().map(one).collect()
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn the_newest_stay_with_what_they_inherit() {
        let plan = plan(&deltas(&[(1, 0), (2, 1), (3, 0), (4, 3), (5, 4)]), 2, &set(&[]));
        assert_eq!((plan.restartable, plan.ancestors, plan.delete), (set(&[4, 5]), set(&[3]), set(&[1, 2])));
    }

    #[test]
    fn a_branch_goes_when_its_turn_comes_and_its_root_stays() {
        // Restarted at 3 of 1…5: 6 has parent 3.
        let generations = deltas(&[(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 3), (7, 6)]);
        let plan = plan(&generations, 2, &set(&[]));
        assert_eq!((plan.ancestors, plan.delete), (set(&[1, 2, 3]), set(&[4, 5])));
    }

    #[test]
    fn what_is_in_use_stays_and_so_does_the_last_hope() {
        let generations = deltas(&[(1, 0), (2, 1), (3, 0)]);
        assert_eq!(plan(&generations, 1, &set(&[2])).delete, set(&[]));
        let damaged: Vec<_> = generations.iter().map(|one| Kept { complete: false, ..*one }).collect();
        assert_eq!(plan(&damaged, 1, &set(&[])).delete, set(&[]));
        assert_eq!(plan(&deltas(&[(2, 1), (3, 2)]), 1, &set(&[])).delete, set(&[]));
    }

    #[test]
    fn a_long_chain_is_merged() {
        let chain: Vec<_> = (1..=20).map(|id| (id, id - 1)).collect();
        assert_eq!(plan(&deltas(&chain), 3, &set(&[])).merge, Some(18));
        assert_eq!(plan(&deltas(&chain[..10]), 3, &set(&[])).merge, None);
    }

    proptest! {
        #[test]
        fn nothing_that_stays_loses_an_ancestor(
            parents in proptest::collection::vec((0u64..30, any::<bool>()), 0..30),
            keep in 0usize..5, used in proptest::collection::btree_set(1u64..30, 0..3),
        ) {
            let generations: Vec<Kept> = (1u64..).zip(&parents).map(|(id, (parent, complete))| Kept {
                id, parent: Some(parent % id).filter(|parent| *parent > 0), complete: *complete,
            }).collect();
            let plan = plan(&generations, keep, &used);
            prop_assert!(plan.restartable.len() <= keep.max(1));
            for one in &generations {
                let places = [&plan.restartable, &plan.ancestors, &plan.delete];
                let found = places.iter().filter(|place| place.contains(&one.id)).count();
                prop_assert!(found == 1 || (found == 0 && plan.restartable.is_empty()));
                let stays = !plan.delete.contains(&one.id);
                prop_assert!(!(stays && found == 1) || one.parent.is_none_or(|parent| !plan.delete.contains(&parent)));
                prop_assert!(!used.contains(&one.id) || stays);
                prop_assert!(!plan.restartable.contains(&one.id) || one.complete);
            }
        }
    }
}

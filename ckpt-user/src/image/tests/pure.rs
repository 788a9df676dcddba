//! Ranges, overlays and plans, without a file.

use super::super::index::{BlockRow, Index, SpaceIndex};
use super::super::overlay::{Entry, EntryRun, Overlay};
use super::super::plan::{Node, Plan, plan};
use super::super::ranges::{cover, intersect, normalise};
use super::super::{PAGE_LIMIT, SpaceId};
use super::{GenerationId, SPACE, cases};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    prop::collection::vec((0u64..60, 0u64..12).prop_map(|(start, count)| start..start + count), 0..8)
}

fn set(ranges: &[Range<u64>]) -> BTreeSet<u64> {
    ranges.iter().cloned().flatten().collect()
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn normalised_ranges_hold_the_same_pages_in_order_with_gaps_between(given in ranges()) {
        let normal = normalise(&given);
        prop_assert_eq!(set(&normal), set(&given));
        prop_assert!(normal.windows(2).all(|pair| pair[0].end < pair[1].start));
    }

    #[test]
    fn intersect_and_cover_split_as_sets_do(left in ranges(), right in ranges()) {
        let (left, right) = (normalise(&left), normalise(&right));
        let both: BTreeSet<u64> = set(&left).intersection(&set(&right)).copied().collect();
        prop_assert_eq!(set(&intersect(&left, &right)), both.clone());
        let mut inside = Vec::new();
        let rest = cover(&left, &right, Clone::clone, |run, part| {
            assert!(run.start <= part.start && part.end <= run.end);
            inside.push(part);
        });
        prop_assert!(inside.windows(2).all(|pair| pair[0].end <= pair[1].start));
        prop_assert_eq!(set(&inside), both.clone());
        prop_assert_eq!(set(&rest), set(&left).difference(&both).copied().collect::<BTreeSet<_>>());
    }

    #[test]
    fn in_an_overlay_the_later_put_wins(puts in prop::collection::vec((0u64..80, 1u64..16, 0u32..6), 0..30)) {
        let (mut overlay, mut model) = (Overlay::default(), BTreeMap::new());
        for (first, count, kind) in puts {
            let entry = match kind {
                0 => Entry::Zero,
                1 => Entry::BackToFile,
                block => Entry::Stored { block, index: first as u16 % 3 },
            };
            overlay.insert(EntryRun { first, count, entry });
            model.extend((first..first + count).map(|page| (page, entry.advance(page - first))));
        }
        let runs = overlay.into_runs();
        prop_assert!(runs.windows(2).all(|pair| pair[0].pages().end <= pair[1].first));
        let found: BTreeMap<_, _> =
            runs.iter().flat_map(|run| run.pages().map(|page| (page, run.entry.advance(page - run.first)))).collect();
        prop_assert_eq!(found, model);
    }

    #[test]
    fn a_plan_keeps_every_ancestor_of_what_it_keeps(
        parents in prop::collection::vec((0usize..10, prop::bool::weighted(0.9)), 1..12),
        keep in 0usize..6,
        held in prop::collection::btree_set(1u64..12, 0..3),
    ) {
        let mut nodes = BTreeMap::new();
        for (number, (back, good)) in parents.iter().enumerate() {
            let (id, parent) = (number as u64 + 1, number.saturating_sub(*back) as u64);
            let parent = (parent > 0).then_some(GenerationId(parent));
            let whole = parent.is_none_or(|parent| nodes.get(&parent).is_some_and(|node: &Node| node.restartable));
            nodes.insert(GenerationId(id), Node { id: GenerationId(id), parent, restartable: *good && whole });
        }
        let held: BTreeSet<_> = held.into_iter().map(GenerationId).filter(|id| nodes.contains_key(id)).collect();
        let plan = plan(&nodes, keep, &held);
        for id in plan.kept.iter().chain(&held) {
            let mut at = Some(*id);
            while let Some(id) = at {
                prop_assert!(!plan.delete.contains(&id), "{plan:?} deletes {id}");
                at = nodes[&id].parent.filter(|_| plan.merge != Some(id));
            }
        }
        prop_assert!(plan.delete.windows(2).all(|pair| pair[0] > pair[1]));
        let restartable: BTreeSet<_> = nodes.values().filter(|node| node.restartable).map(|node| node.id).collect();
        prop_assert_eq!(plan.kept.len(), restartable.len().min(keep.max(1)), "{:?}", plan);
        for (place, id) in plan.kept.iter().enumerate() {
            // After each its parent, or the newest of the others where that is not to be had, or is there.
            let before = &plan.kept[..place];
            let parent = before.last().and_then(|child| nodes[child].parent).filter(|parent| !before.contains(parent));
            let newest = restartable.iter().rev().find(|id| !before.contains(id)).copied();
            prop_assert_eq!(Some(*id), parent.or(newest), "{:?}", plan);
        }
        let left: BTreeSet<_> = restartable.iter().filter(|id| !plan.delete.contains(id)).collect();
        let needed = |id: &&GenerationId| plan.kept.contains(id) || plan.held.contains(id);
        prop_assert!(left.iter().all(needed) && plan.held.iter().all(|_| !held.is_empty()), "{plan:?}");
        prop_assert!(plan.merge.is_none_or(|id| !held.contains(&id) && plan.kept.last() == Some(&id)));
    }
}

fn linear(count: u64) -> BTreeMap<GenerationId, Node> {
    let node =
        |id| Node { id: GenerationId(id), parent: (id > 1).then(|| GenerationId(id - 1)), restartable: true };
    (1..=count).map(|id| (GenerationId(id), node(id))).collect()
}

fn ids<const N: usize>(ids: [u64; N]) -> Vec<GenerationId> {
    ids.map(GenerationId).to_vec()
}

#[test]
fn the_drawn_plan() {
    let mut nodes = linear(9);
    nodes.get_mut(&GenerationId(8)).unwrap().parent = Some(GenerationId(3));
    let planned = plan(&nodes, 3, &BTreeSet::new());
    let merge = Some(GenerationId(3));
    assert_eq!(planned, Plan { kept: ids([9, 8, 3]), merge, delete: ids([7, 6, 5, 4, 2, 1]), held: ids([]) });
    // A reader of the old branch keeps that branch, but not what is below the merged one.
    let planned = plan(&nodes, 3, &BTreeSet::from([GenerationId(5)]));
    assert_eq!(planned, Plan { kept: ids([9, 8, 3]), merge, delete: ids([7, 6, 2, 1]), held: ids([5, 4]) });
    // A reader of the oldest kept one keeps that from being replaced.
    let planned = plan(&nodes, 3, &BTreeSet::from([GenerationId(3)]));
    assert_eq!(
        planned,
        Plan { kept: ids([9, 8, 3]), merge: None, delete: ids([7, 6, 5, 4]), held: ids([3, 2, 1]) }
    );
}

#[test]
fn where_the_newest_chain_is_short_the_newest_of_the_others_are_kept() {
    let mut nodes = linear(6);
    nodes.get_mut(&GenerationId(5)).unwrap().parent = None;
    let none = BTreeSet::new();
    let merge = Some(GenerationId(3));
    let planned = plan(&nodes, 4, &none);
    assert_eq!(planned, Plan { kept: ids([6, 5, 4, 3]), merge, delete: ids([2, 1]), held: ids([]) });
    assert_eq!(plan(&nodes, 6, &none), Plan { kept: ids([6, 5, 4, 3, 2, 1]), ..Plan::default() });
    // A reader of the one that was to become full keeps that and its ancestors as they are.
    let planned = plan(&nodes, 4, &BTreeSet::from([GenerationId(3)]));
    assert_eq!(planned, Plan { kept: ids([6, 5, 4, 3]), merge: None, delete: ids([]), held: ids([3, 2, 1]) });
    // Every one full, as on kernels that tell nothing of writes.
    nodes.values_mut().for_each(|node| node.parent = None);
    let planned = plan(&nodes, 3, &none);
    assert_eq!(planned, Plan { kept: ids([6, 5, 4]), merge: None, delete: ids([3, 2, 1]), held: ids([]) });
    // An old branch comes after all of the chain that it has left.
    let mut nodes = linear(9);
    nodes.get_mut(&GenerationId(8)).unwrap().parent = Some(GenerationId(3));
    let planned = plan(&nodes, 6, &none);
    let merge = Some(GenerationId(7));
    assert_eq!(planned, Plan { kept: ids([9, 8, 3, 2, 1, 7]), merge, delete: ids([6, 5, 4]), held: ids([]) });
}

#[test]
fn a_damaged_newer_generation_stays_and_a_damaged_older_one_goes() {
    let mut nodes = linear(5);
    for id in [4, 5] {
        nodes.get_mut(&GenerationId(id)).unwrap().restartable = false;
    }
    let planned = plan(&nodes, 1, &BTreeSet::new());
    let merge = Some(GenerationId(3));
    assert_eq!(planned, Plan { kept: ids([3]), merge, delete: ids([2, 1]), held: ids([]) });
    for id in 1..=4 {
        nodes.get_mut(&GenerationId(id)).unwrap().restartable = false;
    }
    nodes.insert(GenerationId(5), Node { id: GenerationId(5), parent: None, restartable: true });
    let planned = plan(&nodes, 3, &BTreeSet::new());
    assert_eq!(planned, Plan { kept: ids([5]), merge: None, delete: ids([4, 3, 2, 1]), held: ids([]) });
}

/// An index of two blocks (16 and 3 pages) and one space.
fn index(live: &[Range<u64>], runs: &[EntryRun]) -> Index {
    let blocks = vec![
        BlockRow { offset: 100, stored: 500, pages: 16 },
        BlockRow { offset: 616, stored: 3 * 4096, pages: 3 },
    ];
    let space = SpaceIndex { live: live.to_vec(), runs: runs.to_vec() };
    Index { blocks, spaces: BTreeMap::from([(SPACE, space)]), live_known: true }
}

fn run(first: u64, count: u64, entry: Entry) -> EntryRun {
    EntryRun { first, count, entry }
}

fn stored(block: u32, index: u16) -> Entry {
    Entry::Stored { block, index }
}

/// The blocks of [`index`]: from byte 100 to here.
const END: u64 = 616 + 16 + 3 * 4096;

#[test]
fn an_index_reads_back_and_one_cut_anywhere_does_not() {
    let good = index(
        &[0..50, 60..70],
        &[run(3, 16, stored(0, 0)), run(20, 2, stored(1, 1)), run(60, 10, Entry::Zero)],
    );
    let bytes = good.encode();
    assert_eq!(Index::decode(&bytes, 100..END).unwrap(), good);
    for length in 0..bytes.len() {
        assert!(Index::decode(&bytes[..length], 100..END).is_err(), "{length} bytes");
    }
    assert!(Index::decode(&[&bytes[..], &[0]].concat(), 100..END).unwrap_err().contains("left over"));
    assert!(Index::decode(&bytes, 100..END + 1).unwrap_err().contains("blocks end at"));
}

#[test]
fn an_index_with_any_field_out_of_bounds_is_refused() {
    let all = [0..PAGE_LIMIT];
    let wrong: Vec<(&[Range<u64>], Vec<EntryRun>)> = vec![
        (&all, vec![run(0, 1, stored(2, 0))]),
        (&all, vec![run(0, 4, stored(1, 0))]),
        (&all, vec![run(0, 1, stored(1, 3))]),
        (&all, vec![run(0, 16, stored(0, 1))]),
        (&all, vec![run(0, 0, Entry::Zero)]),
        (&all, vec![run(PAGE_LIMIT - 1, 2, Entry::Zero)]),
        (&all, vec![run(1 << 53, 1, Entry::Zero)]),
        (&all, vec![run(1, u64::MAX, Entry::Zero)]),
        (&all, vec![run(0, 2, Entry::Zero), run(1, 2, Entry::Zero)]),
        (&all, vec![run(5, 1, Entry::Zero), run(1, 1, Entry::Zero)]),
        (&[0..10, 20..30], vec![run(9, 2, Entry::Zero)]),
        (&[0..10, 10..30], vec![]),
        (&[20..30, 0..10], vec![]),
        (&[0..PAGE_LIMIT + 1], vec![]),
        (&[5..5], vec![]),
    ];
    for (live, runs) in wrong {
        let bytes = index(live, &runs).encode();
        assert!(Index::decode(&bytes, 100..END).is_err(), "{live:?} {runs:?}");
    }
    for (stored, pages) in [(0, 1), (1, 0), (70_000, 16), (4097, 1), (5, 17)] {
        let blocks = vec![BlockRow { offset: 0, stored, pages }];
        let index = Index { blocks, ..Index::default() };
        assert!(Index::decode(&index.encode(), 0..16 + u64::from(stored)).is_err(), "{stored} {pages}");
    }
    let mut unknown_live = index(&[0..10], &[]);
    unknown_live.live_known = false;
    assert!(Index::decode(&unknown_live.encode(), 100..END).is_err());
    let mut two = index(&[], &[]);
    two.spaces.insert(SpaceId(0), SpaceIndex::default());
    let mut swapped = two.encode();
    let at = swapped.len() - 32;
    swapped[at..].rotate_left(16);
    assert!(Index::decode(&two.encode(), 100..END).is_ok());
    assert!(Index::decode(&swapped, 100..END).unwrap_err().contains("out of order"));
}

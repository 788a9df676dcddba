//! Chains against a model that keeps every page of every generation in a map.

use super::super::{PageMap, Source, clean_temporaries, list, prune};
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

const SPACES: u32 = 3;
const PAGES: u64 = 70;

#[derive(Clone, Debug)]
enum Put {
    Contents { first: u64, seeds: Vec<u64> },
    Zero { first: u64, count: u64 },
    BackToFile { first: u64, count: u64 },
}

#[derive(Clone, Debug)]
struct Written {
    /// Which of the earlier generations is the parent, counted back from the newest; none of them: full.
    back: usize,
    puts: Vec<(u32, Put)>,
    live: Option<Vec<(u32, Vec<Range<u64>>)>>,
    workers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Seed(u64),
    BackToFile,
}

type State = HashMap<(u32, u64), Content>;

fn put() -> impl Strategy<Value = Put> {
    let first = 0..PAGES - 20;
    prop_oneof![
        4 => (first.clone(), prop::collection::vec(0u64..40, 1..20)).prop_map(|(first, seeds)| Put::Contents { first, seeds }),
        1 => (first.clone(), 1..20u64).prop_map(|(first, count)| Put::Zero { first, count }),
        1 => (first, 1..20u64).prop_map(|(first, count)| Put::BackToFile { first, count }),
    ]
}

fn live() -> impl Strategy<Value = Vec<(u32, Vec<Range<u64>>)>> {
    let range = (0..PAGES, 1..PAGES).prop_map(|(first, count)| first..first + count);
    prop::collection::vec((0..SPACES, prop::collection::vec(range, 0..4)), 0..5)
}

fn written() -> impl Strategy<Value = Written> {
    let back = prop_oneof![6 => Just(0usize), 2 => 1..3usize, 1 => Just(9)];
    (back, prop::collection::vec((0..SPACES, put()), 0..8), prop::option::weighted(0.6, live()), 0..3usize)
        .prop_map(|(back, puts, live, workers)| Written { back, puts, live, workers })
}

/// Writes the generations; gives each one's parent (0: none) and state.
fn write(dir: &Path, generations: &[Written]) -> Vec<(u64, State)> {
    let mut states: Vec<(u64, State)> = Vec::new();
    for (number, generation) in generations.iter().enumerate() {
        let parent = number.saturating_sub(generation.back) as u64;
        let mut state = if parent == 0 { State::new() } else { states[parent as usize - 1].1.clone() };
        let created =
            GenerationWriter::create(dir, header(number as u64 + 1, parent), Codec::Lz4, generation.workers);
        let mut writer = created.unwrap();
        if let Some(live) = &generation.live {
            let live: Vec<_> = live.iter().map(|(space, ranges)| (SpaceId(*space), ranges.clone())).collect();
            writer.set_spaces(&live).unwrap();
            // What the parent has outside of the live ranges is gone even if it is put again and cut.
            state.retain(|(space, page), _| alive(generation, *space, *page));
        }
        for (space, put) in &generation.puts {
            let mut set = |page, content| {
                if alive(generation, *space, page) {
                    state.insert((*space, page), content);
                }
            };
            match put {
                Put::Contents { first, seeds } => {
                    writer.put_pages(SpaceId(*space), *first, &pages(seeds.iter().copied())).unwrap();
                    (*first..).zip(seeds).for_each(|(page, seed)| set(page, Content::Seed(*seed)));
                }
                Put::Zero { first, count } => {
                    writer.put_zero(SpaceId(*space), *first, *count).unwrap();
                    (*first..first + count).for_each(|page| set(page, Content::Seed(0)));
                }
                Put::BackToFile { first, count } => {
                    writer.put_back_to_file(SpaceId(*space), *first, *count).unwrap();
                    (*first..first + count).for_each(|page| set(page, Content::BackToFile));
                }
            }
        }
        commit(writer).unwrap();
        states.push((parent, state));
    }
    states
}

fn alive(generation: &Written, space: u32, page: u64) -> bool {
    let Some(live) = &generation.live else { return true };
    live.iter().any(|(id, ranges)| *id == space && ranges.iter().any(|range| range.contains(&page)))
}

fn check_map(map: &PageMap) {
    let mut end = 0;
    for run in map.runs() {
        assert!(run.first_page >= end && run.count > 0, "{map:?}");
        end = run.pages().end;
    }
    assert_eq!(map.iter_range(0, u64::MAX).collect::<Vec<_>>(), map.runs());
}

/// Every page of generation `id` is what the model says.
fn check(dir: &Path, id: u64, state: &State) {
    let opened = Chain::open(dir, Some(GenerationId(id))).unwrap();
    let mut reader = opened.chain.reader();
    for space in 0..SPACES {
        let map = opened.chain.pages(SpaceId(space));
        check_map(&map);
        for number in 0..PAGES * 2 {
            let found = map.get(number);
            match (found, state.get(&(space, number))) {
                (None, None) | (Some(Source::BackToFile), Some(Content::BackToFile)) => {}
                (Some(source), Some(Content::Seed(seed))) => {
                    let mut out = [7; PAGE_SIZE];
                    reader.read(&source, 1, &mut out).unwrap();
                    assert!(
                        out == page(*seed),
                        "generation {id} space {space} page {number}: {source:?}, seed {seed}"
                    );
                }
                other => panic!("generation {id} space {space} page {number}: {other:?}"),
            }
        }
        for run in map.runs().iter().filter(|run| run.source != Source::BackToFile) {
            let mut out = vec![7; run.count as usize * PAGE_SIZE];
            reader.read_run(run, &mut out).unwrap();
            for (number, bytes) in run.pages().zip(out.chunks(PAGE_SIZE)) {
                assert_eq!(
                    Some(&Content::Seed(0)) == state.get(&(space, number)),
                    bytes.iter().all(|b| *b == 0)
                );
            }
        }
    }
}

/// What a prune keeps: the chain of the newest generation, newest first, then that of the newest of the others, and so on.
fn kept(states: &[(u64, State)], keep: usize) -> Vec<u64> {
    let mut kept = Vec::new();
    let mut next = states.len() as u64;
    while kept.len() < keep.min(states.len()) {
        while next == 0 || kept.contains(&next) {
            next = (1..=states.len() as u64).rev().find(|id| !kept.contains(id)).unwrap();
        }
        kept.push(next);
        next = states[next as usize - 1].0;
    }
    kept
}

fn numbers(ids: &[GenerationId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_generation_of_a_random_tree_reads_as_the_model(generations in prop::collection::vec(written(), 1..7)) {
        let dir = scratch();
        let states = write(dir.path(), &generations);
        for (id, (_, state)) in (1..).zip(&states) {
            check(dir.path(), id, state);
        }
    }

    #[test]
    fn pruning_to_any_number_changes_no_page_of_what_it_keeps(
        generations in prop::collection::vec(written(), 1..7),
        in_use in prop::option::weighted(0.3, 1u64..7),
    ) {
        let dir = scratch();
        let states = write(dir.path(), &generations);
        let in_use: Vec<_> = in_use.filter(|id| *id <= states.len() as u64).into_iter().map(GenerationId).collect();
        for keep in 1..=states.len() {
            let copy = copy(dir.path());
            let report = prune(copy.path(), keep, &in_use, || Ok(())).unwrap();
            let kept = kept(&states, keep);
            prop_assert_eq!(numbers(&report.kept), kept.clone());
            for id in kept.iter().chain(in_use.iter().map(|id| &id.0)) {
                check(copy.path(), *id, &states[*id as usize - 1].1);
            }
            if let Some(id) = report.merged {
                let merged = Chain::open(copy.path(), Some(id)).unwrap().chain;
                prop_assert_eq!(merged.newest().summary().dead_pages, 0);
                prop_assert_eq!(merged.newest().header().parent, None);
            }
            if in_use.is_empty() {
                let left: Vec<u64> = list(copy.path()).unwrap().iter().rev().map(|found| found.id.0).collect();
                let mut newest_first = kept;
                newest_first.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
                prop_assert_eq!(left, newest_first);
            }
            let full = list(copy.path()).unwrap();
            prop_assert!(full.iter().all(|found| found.complete), "{full:?}");
            let again = prune(copy.path(), keep, &in_use, || Ok(())).unwrap();
            prop_assert!(again.merged.is_none() && again.deleted.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn a_crash_between_any_two_steps_of_a_prune_loses_nothing(generations in prop::collection::vec(written(), 2..7)) {
        let dir = scratch();
        let states = write(dir.path(), &generations);
        for keep in 1..states.len() {
            let pruned = copy(dir.path());
            let mut moments = Vec::new();
            let report = prune(pruned.path(), keep, &[], || {
                moments.push(copy(pruned.path()));
                Ok(())
            });
            let report = report.unwrap();
            moments.push(copy(pruned.path()));
            prop_assert_eq!(moments.len(), report.deleted.len() + usize::from(report.merged.is_some()) + 1);
            for moment in moments {
                for id in numbers(&report.kept) {
                    check(moment.path(), id, &states[id as usize - 1].1);
                }
                let listed = list(moment.path()).unwrap();
                prop_assert!(listed.iter().all(|found| found.complete), "{listed:?}");
                clean_temporaries(moment.path()).unwrap();
                let again = prune(moment.path(), keep, &[], || Ok(())).unwrap();
                prop_assert_eq!(&again.kept, &report.kept);
                prop_assert_eq!(names(moment.path()), names(pruned.path()));
            }
        }
    }
}

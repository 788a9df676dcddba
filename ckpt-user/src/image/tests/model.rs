//! Chains against a model that keeps every page of every generation in a map.

use super::super::{PageMap, Source};
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
        let parent = number.checked_sub(generation.back).unwrap_or(0) as u64;
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_generation_of_a_random_tree_reads_as_the_model(generations in prop::collection::vec(written(), 1..6)) {
        let dir = scratch();
        let states = write(dir.path(), &generations);
        for (id, (_, state)) in (1..).zip(&states) {
            check(dir.path(), id, state);
        }
    }
}

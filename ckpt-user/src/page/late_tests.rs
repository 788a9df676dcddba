//! An address space whose threads are stopped anywhere between a change and the reading of its last event; what `late.rs` does not
//! tell apart does not occur.

use super::{Late, set};
use crate::memory::runs::PageSet;
use crate::page::pending::{Part, Pending};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;

const SPACE: u64 = 60;
const THREADS: usize = 4;

#[derive(Debug, Clone)]
enum Told {
    Unmap(Range<u64>),
    Remap(u64, u64, u64),
}

#[derive(Debug, Clone)]
struct Area {
    pages: Range<u64>,
    /// The image's page for each that has not arrived.
    content: Vec<Option<u64>>,
    is_watched: bool,
    /// Some of it is not known to be held: it tells at once when it goes.
    has_grown: bool,
    /// In a call that has not returned.
    used_by: Option<usize>,
    /// Threads that have left its place without a word of it.
    behind: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Thread, area, how it moves, pages that it grows by.
    Move(usize, usize, How, u64),
    Unmap(usize, usize),
    Map(usize, u64),
    Queue(usize),
    Read,
    Settle,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    ToAHole,
    Over(usize),
    LeavingZeros,
}

#[derive(Default)]
struct Model {
    areas: Vec<Area>,
    /// What each thread has yet to tell, and whether the first of it is queued.
    calls: [(VecDeque<Told>, bool); THREADS],
    queue: VecDeque<usize>,
    /// What each has left, until that is told.
    unsaid: [Option<Range<u64>>; THREADS],
}

impl Model {
    fn idle(&self, thread: usize) -> bool {
        self.calls[thread].0.is_empty()
    }

    /// An area that nobody uses, and that did not come to where somebody has left without a word.
    fn free(&self, area: usize) -> Option<usize> {
        let index = area.checked_rem(self.areas.len())?;
        let area = &self.areas[index];
        (area.used_by.is_none() && area.behind.is_empty()).then_some(index)
    }

    /// One that may be unmapped: nobody has yet to say so of the same place.
    fn unmappable(&self, area: usize) -> Option<usize> {
        let index = self.free(area)?;
        let same = |told: &Told| matches!(told, Told::Unmap(range) if *range == self.areas[index].pages);
        (!self.calls.iter().any(|(told, _)| told.iter().any(same))).then_some(index)
    }

    fn hole(&self, count: u64) -> Option<u64> {
        let is_free = |at: &u64| self.areas.iter().all(|a| a.pages.end <= *at || a.pages.start >= at + count);
        (0..=SPACE - count).find(is_free)
    }

    /// Threads that have left some of `pages` without a word of it read yet.
    fn leavers(&self, pages: &Range<u64>) -> Vec<usize> {
        let is_there = |left: &Range<u64>| left.start < pages.end && pages.start < left.end;
        (0..THREADS).filter(|&t| self.unsaid[t].as_ref().is_some_and(is_there)).collect()
    }

    fn call(&mut self, thread: usize, left: Range<u64>, told: Vec<Told>, at_once: bool) {
        self.unsaid[thread] = Some(left);
        self.calls[thread] = (told.into(), false);
        if at_once {
            self.queue(thread);
        }
    }

    fn queue(&mut self, thread: usize) {
        let (told, is_queued) = &mut self.calls[thread];
        if !told.is_empty() && !*is_queued {
            *is_queued = true;
            self.queue.push_back(thread);
        }
    }

    fn relocate(&mut self, thread: usize, index: usize, how: How, grown: u64) {
        let area = self.areas[index].clone();
        let count = area.pages.end - area.pages.start;
        let mut told = Vec::new();
        let to = match how {
            How::Over(other) => {
                let Some(other) = self.unmappable(other).filter(|&o| o != index) else { return };
                let there = self.areas[other].pages.clone();
                if !area.is_watched || area.has_grown || there.end - there.start != count + grown {
                    return;
                }
                if self.areas[other].is_watched {
                    told.push(Told::Unmap(there.clone()));
                }
                self.areas[other].pages = SPACE * 2..SPACE * 2;
                there.start
            }
            How::ToAHole | How::LeavingZeros => match self.hole(count + grown) {
                Some(to) => to,
                None => return,
            },
        };
        let pages = to..to + count + grown;
        let behind = self.leavers(&pages);
        let mut content = area.content.clone();
        content.resize((count + grown) as usize, None);
        let has_grown = area.has_grown || grown > 0;
        let used_by = area.is_watched.then_some(thread);
        self.areas[index] = Area { pages, content, has_grown, used_by, behind, ..area.clone() };
        if how == How::LeavingZeros {
            // Until all is settled nobody knows it from what has left as a whole.
            let content = vec![None; count as usize];
            self.areas.push(Area { content, used_by, has_grown: true, ..area.clone() });
        }
        self.areas.retain(|a| a.pages.start < SPACE);
        if area.is_watched {
            told.push(Told::Remap(area.pages.start, to, count));
            if how != How::LeavingZeros {
                told.push(Told::Unmap(area.pages.clone()));
            }
            self.call(thread, area.pages, told, area.has_grown);
        }
    }

    fn take(&mut self, step: Step, late: &mut Late, pending: &mut Pending) {
        match step {
            Step::Move(thread, area, how, grown) if self.idle(thread) => {
                if let Some(index) = self.free(area) {
                    let grown = if how == How::ToAHole { grown } else { 0 };
                    self.relocate(thread, index, how, grown);
                }
            }
            Step::Unmap(thread, area) if self.idle(thread) => {
                if let Some(index) = self.unmappable(area) {
                    let area = self.areas.remove(index);
                    if area.is_watched {
                        self.call(thread, area.pages.clone(), vec![Told::Unmap(area.pages)], area.has_grown);
                    }
                }
            }
            Step::Map(thread, count) if self.idle(thread) => {
                if let Some(at) = self.hole(count) {
                    let content = vec![None; count as usize];
                    let (pages, behind) = (at..at + count, Vec::new());
                    let area =
                        Area { pages, content, is_watched: false, has_grown: false, used_by: None, behind };
                    self.areas.push(area);
                }
            }
            Step::Queue(thread) => self.queue(thread),
            Step::Read => self.read(late, pending),
            Step::Settle if (0..THREADS).all(|t| self.idle(t)) => late.settle(),
            _ => {}
        }
    }

    fn read(&mut self, late: &mut Late, pending: &mut Pending) {
        let Some(thread) = self.queue.pop_front() else { return };
        let (told, is_queued) = &mut self.calls[thread];
        *is_queued = false;
        match told.pop_front() {
            Some(Told::Unmap(range)) => late.unmap(pending, &range),
            Some(Told::Remap(from, to, count)) => late.remap(pending, from, to, count),
            None => {}
        }
        let has_left = !told.iter().any(|t| matches!(t, Told::Remap(..)));
        let has_returned = told.is_empty();
        if has_left {
            self.unsaid[thread] = None;
        }
        for area in &mut self.areas {
            if has_left {
                area.behind.retain(|&t| t != thread);
            }
            if has_returned && area.used_by == Some(thread) {
                area.used_by = None;
            }
        }
    }

    fn truth(&self) -> Vec<(u64, u64)> {
        let of = |a: &Area| a.pages.clone().zip(a.content.clone()).collect::<Vec<_>>();
        let all = self.areas.iter().filter(|a| a.is_watched).flat_map(of);
        let mut all: Vec<_> = all.filter_map(|(page, content)| Some((page, content?))).collect();
        all.sort_unstable();
        all
    }
}

fn shown(pending: &Pending) -> Vec<(u64, u64)> {
    let pages = |p: Part| p.pages.clone().zip(p.origin..).collect::<Vec<_>>();
    pending.parts().flat_map(pages).collect()
}

fn step() -> impl Strategy<Value = Step> {
    let (thread, area) = (0..THREADS, 0usize..12);
    let how = prop_oneof![
        6 => Just(How::ToAHole),
        1 => (0usize..12).prop_map(How::Over),
        1 => Just(How::LeavingZeros)
    ];
    let grown = prop_oneof![3 => Just(0u64), 1 => 1u64..3];
    prop_oneof![
        6 => (thread.clone(), area.clone(), how, grown).prop_map(|(t, a, h, g)| Step::Move(t, a, h, g)),
        2 => (thread.clone(), area).prop_map(|(t, a)| Step::Unmap(t, a)),
        1 => (thread.clone(), 1u64..6).prop_map(|(t, n)| Step::Map(t, n)),
        8 => thread.prop_map(Step::Queue),
        6 => Just(Step::Read),
        1 => Just(Step::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// What is pending at the end is what is where, whatever the order in which it was told.
    #[test]
    fn agrees_with_an_address_space(
        lengths in prop::collection::vec((1u64..6, any::<bool>()), 1..9),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut model = Model::default();
        let mut held = PageSet::new();
        let mut arriving = PageSet::new();
        let mut at = 0;
        for (count, is_full) in lengths {
            let pages = at..at + count;
            held.insert(pages.clone());
            // Every page, or all but the first.
            let content: Vec<_> =
                pages.clone().map(|page| (!is_full && page != pages.start).then_some(page)).collect();
            content.iter().flatten().for_each(|&page| arriving.insert(page..page + 1));
            let area = Area { pages, content, is_watched: true, has_grown: false, used_by: None, behind: Vec::new() };
            model.areas.push(area);
            at += count;
        }
        let mut pending = Pending::at_home(&arriving);
        let mut late = Late::new(held);
        for step in steps {
            model.take(step, &mut late, &mut pending);
        }
        while (0..THREADS).any(|t| !model.idle(t)) {
            (0..THREADS).for_each(|t| model.queue(t));
            model.read(&mut late, &mut pending);
        }
        prop_assert_eq!(shown(&pending), model.truth());
        prop_assert_eq!(pending.len(), model.truth().len() as u64);
    }
}

fn pending(pages: Range<u64>) -> Pending {
    Pending::at_home(&set(&pages))
}

fn parts(pending: &Pending) -> Vec<(Range<u64>, u64)> {
    pending.parts().map(|part| (part.pages, part.origin)).collect()
}

/// A is at 0, X at 10, B at 20.
fn both() -> (Late, Pending) {
    let held = [0..4, 10..14].into_iter().collect::<PageSet>();
    (Late::new(held.clone()), Pending::at_home(&held))
}

#[test]
fn what_comes_to_a_place_stays_when_its_former_move_is_told_in_full() {
    let (mut late, mut pending) = both();
    late.remap(&mut pending, 0, 20, 4);
    late.remap(&mut pending, 10, 0, 4);
    late.unmap(&mut pending, &(0..4));
    late.unmap(&mut pending, &(10..14));
    assert_eq!(parts(&pending), [(0..4, 10), (20..24, 0)]);
}

#[test]
fn a_move_that_is_told_late_takes_what_was_there_before() {
    let (mut late, mut pending) = both();
    late.remap(&mut pending, 10, 0, 4);
    late.remap(&mut pending, 0, 20, 4);
    late.unmap(&mut pending, &(10..14));
    late.unmap(&mut pending, &(0..4));
    assert_eq!(parts(&pending), [(0..4, 10), (20..24, 0)]);
}

#[test]
fn an_unmapping_that_is_told_late_takes_what_was_there_before() {
    for arrived in [0..0, 0..4] {
        let (mut late, _) = both();
        let mut pending = pending(10..14);
        arrived.for_each(|page| pending.put(&Part { pages: page..page + 1, origin: page }));
        late.remap(&mut pending, 10, 0, 4);
        late.unmap(&mut pending, &(10..14));
        late.unmap(&mut pending, &(0..4));
        assert_eq!(parts(&pending), [(0..4, 10)]);
    }
}

#[test]
fn what_is_unmapped_after_all_is_settled_is_gone() {
    let (mut late, mut pending) = both();
    late.remap(&mut pending, 10, 20, 4);
    assert!(!late.is_settled());
    late.unmap(&mut pending, &(10..14));
    assert!(late.is_settled());
    late.unmap(&mut pending, &(20..24));
    late.unmap(&mut pending, &(0..4));
    assert!(pending.is_empty() && late.is_settled());
}

/// MREMAP_DONTUNMAP leaves empty memory at 0, of which the second half is unmapped: what comes there then is alone.
#[test]
fn what_was_left_empty_and_is_unmapped_holds_nothing() {
    let (mut late, mut pending) = both();
    late.remap(&mut pending, 0, 20, 4);
    late.unmap(&mut pending, &(2..4));
    late.settle();
    late.remap(&mut pending, 10, 2, 2);
    late.remap(&mut pending, 2, 30, 2);
    assert_eq!(parts(&pending), [(12..14, 12), (20..24, 0), (30..32, 10)]);
}

#[test]
fn what_has_left_without_a_word_is_missing_until_it_arrives() {
    let (mut late, mut pending) = both();
    late.remap(&mut pending, 10, 0, 4);
    assert_eq!((pending.len(), late.waiting()), (4, 4));
    late.remap(&mut pending, 0, 20, 4);
    assert_eq!((pending.len(), late.waiting()), (8, 0));
}

//! Sets of pages as sorted ranges that neither overlap nor touch. Pure.

use std::ops::Range;

/// Every page there can be.
pub(super) const ALL: Range<u64> = 0..super::PAGE_LIMIT;

/// Sorts, drops empty ranges, joins those that overlap or touch.
pub(super) fn normalise(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> =
        ranges.iter().filter(|range| range.start < range.end).cloned().collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The pages in both sets.
pub(super) fn intersect(left: &[Range<u64>], right: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        let part = a.start.max(b.start)..a.end.min(b.end);
        if part.start < part.end {
            both.push(part);
        }
        if a.end <= b.end {
            i += 1;
        } else {
            j += 1;
        }
    }
    both
}

/// Splits `runs` of pages, sorted and not overlapping, at the edges of `set`.
///
/// Calls `inside(run, part)` for each non-empty part of a run that lies in the set, in order, and gives the pages
/// of the set that no run covers.
pub(super) fn cover<T>(
    set: &[Range<u64>],
    runs: &[T],
    extent: impl Fn(&T) -> Range<u64>,
    mut inside: impl FnMut(&T, Range<u64>),
) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut next = 0;
    for range in set {
        let mut at = range.start;
        // Runs wholly before this range touch no later one either.
        next += runs[next..].partition_point(|run| extent(run).end <= range.start);
        while let Some(run) = runs.get(next) {
            let pages = extent(run);
            let part = pages.start.max(at)..pages.end.min(range.end);
            if part.start >= part.end {
                break;
            }
            if at < part.start {
                left.push(at..part.start);
            }
            at = part.end;
            inside(run, part);
            if pages.end > range.end {
                break;
            }
            next += 1;
        }
        if at < range.end {
            left.push(at..range.end);
        }
    }
    left
}

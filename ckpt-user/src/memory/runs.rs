//! Sets of pages as sorted, disjoint, non-adjacent runs of page numbers.

use std::ops::Range;

/// A set of page numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet(Vec<Range<u64>>);

impl PageSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of pages.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    pub fn runs(&self) -> &[Range<u64>] {
        &self.0
    }

    pub fn contains(&self, page: u64) -> bool {
        let i = self.0.partition_point(|r| r.end <= page);
        self.0.get(i).is_some_and(|r| r.start <= page)
    }

    /// Adds `run`; cheap when it lies at or behind the end.
    pub fn insert(&mut self, run: Range<u64>) {
        if run.start >= run.end {
            return;
        }
        let from = self.0.partition_point(|r| r.end < run.start);
        let to = self.0.partition_point(|r| r.start <= run.end);
        if from == to {
            self.0.insert(from, run);
            return;
        }
        let merged = run.start.min(self.0[from].start)..run.end.max(self.0[to - 1].end);
        self.0.splice(from..to, [merged]);
    }

    pub fn remove(&mut self, run: &Range<u64>) {
        let cut = Self(vec![run.clone()]);
        *self = self.difference(&cut);
    }

    /// The same as sets of at most `pages` pages each, in order.
    pub fn parts(&self, pages: u64) -> Vec<Self> {
        let mut parts = Vec::new();
        let (mut part, mut room) = (Self::new(), pages);
        for run in &self.0 {
            let mut at = run.start;
            while at < run.end {
                let end = run.end.min(at + room);
                part.0.push(at..end);
                (room, at) = (room - (end - at), end);
                if room == 0 {
                    parts.push(std::mem::take(&mut part));
                    room = pages;
                }
            }
        }
        parts.extend(Some(part).filter(|part| !part.is_empty()));
        parts
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<&Range<u64>> = self.0.iter().chain(&other.0).collect();
        all.sort_unstable_by_key(|r| r.start);
        all.into_iter().cloned().collect()
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let (mut i, mut j, mut out) = (0, 0, Vec::new());
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            let both = a.start.max(b.start)..a.end.min(b.end);
            if both.start < both.end {
                out.push(both);
            }
            if a.end < b.end { i += 1 } else { j += 1 }
        }
        Self(out)
    }

    /// Pages of `self` that `other` lacks.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        let mut j = 0;
        for a in &self.0 {
            let mut at = a.start;
            while other.0.get(j).is_some_and(|b| b.end <= at) {
                j += 1;
            }
            let mut k = j;
            while let Some(b) = other.0.get(k).filter(|b| b.start < a.end) {
                if at < b.start {
                    out.push(at..b.start);
                }
                at = at.max(b.end);
                k += 1;
            }
            if at < a.end {
                out.push(at..a.end);
            }
        }
        Self(out)
    }
}

impl FromIterator<Range<u64>> for PageSet {
    /// Runs in any order; ascending ones are the fast case.
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(runs: I) -> Self {
        let mut set = Self::new();
        for run in runs {
            match set.0.last_mut() {
                Some(last) if last.start <= run.start && run.start <= last.end => {
                    last.end = last.end.max(run.end);
                }
                Some(last) if run.start < last.start => set.insert(run),
                _ if run.start < run.end => set.0.push(run),
                _ => {}
            }
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pages(set: &PageSet) -> BTreeSet<u64> {
        set.runs().iter().cloned().flatten().collect()
    }

    fn runs() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0u64..120, 0u64..9).prop_map(|(s, n)| s..s + n), 0..20)
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_numbers(a in runs(), b in runs()) {
            let naive = |v: &[Range<u64>]| v.iter().cloned().flatten().collect::<BTreeSet<u64>>();
            let (na, nb) = (naive(&a), naive(&b));
            let (sa, sb): (PageSet, PageSet) = (a.iter().cloned().collect(), b.iter().cloned().collect());
            let mut inserted = PageSet::new();
            for run in &a { inserted.insert(run.clone()); }
            prop_assert_eq!(&inserted, &sa);
            prop_assert_eq!(pages(&sa), na.clone());
            prop_assert_eq!(sa.len(), na.len() as u64);
            prop_assert_eq!(pages(&sa.union(&sb)), na.union(&nb).copied().collect());
            prop_assert_eq!(pages(&sa.intersection(&sb)), na.intersection(&nb).copied().collect());
            prop_assert_eq!(pages(&sa.difference(&sb)), na.difference(&nb).copied().collect());
            for set in [sa.union(&sb), sa.intersection(&sb), sa.difference(&sb)] {
                prop_assert!(set.runs().windows(2).all(|w| w[0].end < w[1].start));
            }
            prop_assert!((0..130).all(|p| sa.contains(p) == na.contains(&p)));
            for size in [1, 3, 50] {
                let parts = sa.parts(size);
                let (last, others) = parts.split_last().map_or((0, &parts[..]), |(l, o)| (l.len(), o));
                prop_assert!(last <= size && others.iter().all(|part| part.len() == size));
                let together = parts.iter().flat_map(|part| part.runs().to_vec()).collect::<PageSet>();
                prop_assert_eq!(&together, &sa);
            }
        }
    }
}

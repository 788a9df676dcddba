//! The live map: which pages of an address space have not arrived, and which page of the image belongs there.

use crate::memory::runs::PageSet;
use std::collections::BTreeMap;
use std::ops::Range;

/// Pages that have not arrived. Runs do not overlap; a run's pages stand side by side in the image as well.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    runs: BTreeMap<u64, Run>,
    count: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    end: u64,
    /// The image's page for the first one.
    origin: u64,
}

/// Neighbouring pages that have not arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where they are in the address space.
    pub pages: Range<u64>,
    /// The image's page for the first one.
    pub origin: u64,
}

impl Part {
    pub fn count(&self) -> u64 {
        self.pages.end - self.pages.start
    }

    /// At the same place as in the image: not moved by mremap(2).
    pub fn is_at_home(&self) -> bool {
        self.pages.start == self.origin
    }

    fn cut(&self, to: &Range<u64>) -> Self {
        let pages = self.pages.start.max(to.start)..self.pages.end.min(to.end);
        Self { origin: self.origin + (pages.start - self.pages.start), pages }
    }
}

impl Pending {
    /// Every page of `set`, each at home.
    pub fn at_home(set: &PageSet) -> Self {
        let runs = set.runs().iter().map(|r| (r.start, Run { end: r.end, origin: r.start })).collect();
        Self { runs, count: set.len() }
    }

    /// Number of pages.
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The parts in `range`, cut to it, in order.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = Part> {
        let before = self.runs.range(..range.start).next_back().filter(|(_, run)| run.end > range.start);
        // An empty range must not look backwards.
        let inside = self.runs.range(range.start..range.end.max(range.start));
        before
            .into_iter()
            .chain(inside)
            .map(|(&start, run)| Part { pages: start..run.end, origin: run.origin }.cut(range))
    }

    /// All parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.within(&(0..u64::MAX))
    }

    /// Takes the pages of `range` out; returns what was there.
    pub fn remove(&mut self, range: &Range<u64>) -> Vec<Part> {
        let gone: Vec<Part> = self.within(range).collect();
        for part in &gone {
            let Some((&start, &run)) = self.runs.range(..=part.pages.start).next_back() else { continue };
            self.runs.remove(&start);
            if start < part.pages.start {
                self.runs.insert(start, Run { end: part.pages.start, origin: run.origin });
            }
            if part.pages.end < run.end {
                let origin = run.origin + (part.pages.end - start);
                self.runs.insert(part.pages.end, Run { end: run.end, origin });
            }
            self.count -= part.count();
        }
        gone
    }

    /// Puts pages to where none are pending.
    pub fn put(&mut self, part: &Part) {
        self.count += part.count();
        self.runs.insert(part.pages.start, Run { end: part.pages.end, origin: part.origin });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Remove(u64, u64),
        Remap(u64, u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let remove = (0u64..100, 0u64..20).prop_map(|(s, n)| Step::Remove(s, n));
        let remap = (0u64..100, 0u64..100, 1u64..20).prop_map(|(f, t, n)| Step::Remap(f, t, n));
        prop::collection::vec(prop_oneof![remove, remap], 0..30)
    }

    proptest! {
        #[test]
        fn agrees_with_a_table_of_pages(start in prop::collection::vec(any::<bool>(), 120), steps in steps()) {
            let mut table: Vec<Option<u64>> = (0..140).map(|_| None).collect();
            let mut set = PageSet::new();
            for (page, _) in start.iter().enumerate().filter(|(_, there)| **there) {
                table[page] = Some(page as u64);
                set.insert(page as u64..page as u64 + 1);
            }
            let mut pending = Pending::at_home(&set);
            for step in steps {
                match step {
                    Step::Remove(from, n) => {
                        pending.remove(&(from..from + n));
                        table[from as usize..(from + n) as usize].fill(None);
                    }
                    Step::Remap(from, to, n) if from + n <= to || to + n <= from => {
                        let moved = pending.remove(&(from..from + n));
                        pending.remove(&(to..to + n));
                        for part in moved {
                            let start = part.pages.start - from + to;
                            pending.put(&Part { pages: start..start + part.count(), origin: part.origin });
                        }
                        for i in 0..n {
                            table[(to + i) as usize] = table[(from + i) as usize].take();
                        }
                    }
                    // The kernel refuses a move onto itself.
                    Step::Remap(..) => {}
                }
                let mut shown: Vec<Option<u64>> = (0..140).map(|_| None).collect();
                for part in pending.parts() {
                    for (i, page) in part.pages.clone().enumerate() {
                        shown[page as usize] = Some(part.origin + i as u64);
                    }
                }
                prop_assert_eq!(&shown, &table);
                prop_assert_eq!(pending.len(), table.iter().flatten().count() as u64);
            }
        }
    }
}

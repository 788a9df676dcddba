//! Private pages that are not watched for writes: each one is read in every freeze, and compared by hash with what the
//! chain holds.
//!
//! Pages of private file mappings are such. Write protection by a userfaultfd leaves a mark in the page table where a
//! protected page of a file mapping is dropped, and guard pages (MADV_GUARD_INSTALL, Linux 6.15) are put only where there
//! is nothing: the kernel drops the page, meets its own mark, and drops again, without end. What no userfaultfd watches
//! (MAP_DROPPABLE) is compared too.

use crate::memory::pages;
use crate::memory::runs::PageSet;
use crate::planted;
use crate::sys::mem::Forced;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::thread::{Builder, ScopedJoinHandle};
use xxhash_rust::xxh3::xxh3_128;

/// The hash of each page, by page number.
pub type Hashes = HashMap<u64, u128>;

/// The hash of a page of a process.
pub fn hash(page: &[u8]) -> u128 {
    xxh3_128(page)
}

/// Pages looked at in one go: what differs of them is held in memory (64 MiB at most).
const WAVE: u64 = 16 << 10;
/// A thread has at least so many (its start takes as long as some fifty).
const FEW: u64 = 1024;
const THREADS: usize = 8;

/// What one thread has found.
struct Looked {
    differing: Vec<(u64, u128, Vec<u8>)>,
    missing: PageSet,
}

/// The compared pages of one address space.
#[derive(Debug, Default)]
pub struct Compared {
    /// Of the chain's newest generation.
    committed: Hashes,
    /// Stored by the checkpoint being made.
    pending: Hashes,
    /// Stored by it as something else: what the chain had there before does not count any more.
    replaced: PageSet,
    /// There, as of the last scan.
    pub pages: PageSet,
}

impl Compared {
    /// Pages just restored, with these hashes.
    pub fn restored(hashes: Hashes) -> Self {
        Self { committed: hashes, ..Self::default() }
    }

    /// Hands those of consecutive pages to `each` that are not what is stored already; returns how many they were.
    pub fn differing(
        &mut self,
        first_page: u64,
        bytes: &[u8],
        each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut count = 0;
        for (page, bytes) in (first_page..).zip(bytes.chunks_exact(4096)) {
            let hash = hash(bytes);
            if !self.is_stored(page, hash) {
                each(page, bytes)?;
                self.pending.insert(page, hash);
                count += 1;
            }
        }
        Ok(count)
    }

    fn is_stored(&self, page: u64, hash: u128) -> bool {
        let committed = || self.committed.get(&page).filter(|_| !self.replaced.contains(page));
        let is_stale = planted::is("stale-compared") && self.committed.contains_key(&page);
        self.pending.get(&page).or_else(committed) == Some(&hash) || is_stale
    }

    /// In a freeze: hands those of all pages to `each` that are not what is stored already, found by several threads where
    /// they are many; returns the ones that cannot be read.
    pub fn all_differing(
        &mut self,
        pid: Pid,
        memory: &Forced,
        each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<PageSet> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS) as u64;
        let mut unreadable = PageSet::new();
        for wave in self.pages.parts(WAVE) {
            let parts = wave.parts(wave.len().div_ceil(processors).max(FEW));
            let look = |part| self.look(pid, memory, part);
            let found: Vec<io::Result<Looked>> = match &parts[..] {
                [part] => vec![look(part)],
                parts => std::thread::scope(|scope| {
                    let start = |part| (part, Builder::new().spawn_scoped(scope, move || look(part)));
                    let threads: Vec<_> = parts.iter().map(start).collect();
                    let failed = |_| Err(io::Error::other("a thread that compares pages has failed"));
                    // Where there can be no more threads, this one does it.
                    let join = |(part, thread): (_, io::Result<ScopedJoinHandle<'_, _>>)| match thread {
                        Ok(thread) => thread.join().unwrap_or_else(failed),
                        Err(_) => look(part),
                    };
                    threads.into_iter().map(join).collect()
                }),
            };
            for looked in found {
                let Looked { differing, missing } = looked?;
                for (page, hash, bytes) in differing {
                    each(page, &bytes)?;
                    self.pending.insert(page, hash);
                }
                unreadable = unreadable.union(&missing);
            }
        }
        Ok(unreadable)
    }

    fn look(&self, pid: Pid, memory: &Forced, part: &PageSet) -> io::Result<Looked> {
        let mut differing = Vec::new();
        let missing = pages::copy(pid, memory, part, &mut Vec::new(), &mut |first, bytes| {
            for (page, bytes) in (first..).zip(bytes.chunks_exact(4096)) {
                let hash = hash(bytes);
                if !self.is_stored(page, hash) {
                    differing.push((page, hash, bytes.to_vec()));
                }
            }
            Ok(())
        })?;
        Ok(Looked { differing, missing })
    }

    /// The checkpoint being made stores these pages of memory that is watched.
    pub fn replace(&mut self, pages: &PageSet) {
        self.pending.retain(|&page, _| !pages.contains(page));
        self.replaced = self.replaced.union(pages);
    }

    /// A checkpoint begins: what a failed one has stored is not in the chain.
    pub fn begin(&mut self) {
        self.pending = Hashes::new();
        self.replaced = PageSet::new();
    }

    /// The next generation has no parent.
    pub fn forget(&mut self) {
        self.committed = Hashes::new();
    }

    /// The generation is durable. A page that is not there any more is a new one should it come back.
    pub fn committed(&mut self) {
        let replaced = std::mem::take(&mut self.replaced);
        self.committed.retain(|&page, _| self.pages.contains(page) && !replaced.contains(page));
        let pending = std::mem::take(&mut self.pending);
        self.committed.extend(pending.into_iter().filter(|(page, _)| self.pages.contains(*page)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a process can do with one of a few pages between two looks, and what a checkpoint can come to.
    #[derive(Debug, Clone)]
    enum Step {
        /// The page is a compared one with this content, a watched one, or not there.
        Compared(u64, u8),
        Watched(u64, u8),
        Gone(u64),
        Look,
        Commit,
        Fail,
        Full,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let page = || 0u64..4;
        let step = prop_oneof![
            4 => (page(), 0u8..3).prop_map(|(page, content)| Step::Compared(page, content)),
            2 => (page(), 0u8..3).prop_map(|(page, content)| Step::Watched(page, content)),
            1 => page().prop_map(Step::Gone),
            3 => Just(Step::Look),
            3 => Just(Step::Commit),
            1 => Just(Step::Fail),
            1 => Just(Step::Full),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// Memory, what the chain holds, and what the checkpoint being made would leave there.
    #[derive(Default)]
    struct Model {
        compared: Compared,
        memory: HashMap<u64, (bool, u8)>,
        chain: HashMap<u64, u8>,
        next: HashMap<u64, u8>,
    }

    impl Model {
        fn look(&mut self) {
            let watched: PageSet =
                self.memory.iter().filter(|(_, m)| !m.0).map(|(&page, _)| page..page + 1).collect();
            self.compared.pages =
                self.memory.iter().filter(|(_, m)| m.0).map(|(&page, _)| page..page + 1).collect();
            self.compared.replace(&watched);
            for (&page, &(is_compared, content)) in &self.memory {
                if is_compared {
                    let next = &mut self.next;
                    let mut store = |page, bytes: &[u8]| {
                        next.insert(page, bytes[0]);
                        Ok(())
                    };
                    self.compared.differing(page, &[content; 4096], &mut store).unwrap();
                } else {
                    self.next.insert(page, content);
                }
            }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Compared(page, content) => drop(self.memory.insert(page, (true, content))),
                Step::Watched(page, content) => drop(self.memory.insert(page, (false, content))),
                Step::Gone(page) => drop(self.memory.remove(&page)),
                Step::Look => self.look(),
                Step::Commit => {
                    self.look();
                    self.next.retain(|page, _| self.memory.contains_key(page));
                    self.chain.clone_from(&self.next);
                    self.compared.committed();
                    self.compared.begin();
                    assert!(self.memory.iter().all(|(page, m)| self.chain.get(page) == Some(&m.1)));
                }
                Step::Fail => {
                    self.look();
                    self.next.clone_from(&self.chain);
                    self.compared.begin();
                }
                Step::Full => {
                    self.next = HashMap::new();
                    self.compared.begin();
                    self.compared.forget();
                }
            }
        }
    }

    proptest! {
        #[test]
        fn after_a_commit_the_chain_holds_what_memory_holds(steps in steps()) {
            let mut model = Model::default();
            steps.iter().for_each(|step| model.step(step));
            model.step(&Step::Commit);
        }
    }

    #[test]
    fn what_has_not_changed_is_not_stored_again() {
        let mut compared = Compared { pages: std::iter::once(0..8).collect(), ..Compared::default() };
        let mut store = |_, _: &[u8]| Ok(());
        let mut bytes = vec![7; 8 * 4096];
        assert_eq!(compared.differing(0, &bytes, &mut store).unwrap(), 8);
        assert_eq!(compared.differing(0, &bytes, &mut store).unwrap(), 0);
        compared.committed();
        bytes[4096] = 1;
        assert_eq!(compared.differing(0, &bytes, &mut store).unwrap(), 1);
        compared.begin();
        assert_eq!(compared.differing(0, &bytes, &mut store).unwrap(), 1, "that was not committed");
    }

    #[test]
    fn of_many_pages_several_threads_find_those_that_differ_each_once() {
        let here = crate::sys::probe::Pages::new(5000).unwrap();
        let (first, count) = (here.address() / 4096, here.bytes() / 4096);
        let mut compared =
            Compared { pages: std::iter::once(first..first + count).collect(), ..Compared::default() };
        let memory = Forced::open(Pid::this()).unwrap();
        let mut look = || {
            let mut found = Vec::new();
            let mut each = |page: u64, bytes: &[u8]| {
                assert_eq!(bytes.len(), 4096);
                found.push(page - first);
                Ok(())
            };
            assert!(compared.all_differing(Pid::this(), &memory, &mut each).unwrap().is_empty());
            compared.committed();
            found
        };
        assert_eq!(look(), (0..count).collect::<Vec<_>>());
        [3, 1024, 4999].into_iter().for_each(|page| memory.write((first + page) * 4096, &[9]).unwrap());
        assert_eq!(look(), [3, 1024, 4999]);
        assert!(look().is_empty());
    }
}

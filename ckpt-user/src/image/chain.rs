//! A generation and its ancestors down to a full one.

use super::error::Fault;
use super::generation::{Generation, header_of};
use super::{GenerationId, Header, ImageError, PageMap, PageReader, Source, SpaceId, publish};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::Builder;
use std::time::Duration;

/// Prune replaces and deletes files; what a reader then misses is there a moment later under another inode.
const TRIES: u32 = 40;
/// Fewer, because a parent may be missing for good.
const TRIES_FOR_PARENT: u32 = 3;
const PAUSE: Duration = Duration::from_millis(10);
/// That read and compare checksums.
const THREADS: usize = 4;

/// What [`Chain::open`] found.
#[derive(Debug)]
pub struct Opened {
    pub chain: Chain,
    /// One line for each newer generation that could not be used.
    pub warnings: Vec<String>,
}

/// Generations from the newest to a full one, each with a shared lock that keeps prune away for as long as the chain
/// or a reader of it lives.
#[derive(Clone, Debug)]
pub struct Chain {
    generations: Arc<Vec<Generation>>,
}

impl Chain {
    /// Opens the newest generation in `dir` whose whole chain opens, or exactly `at`.
    ///
    /// Page blocks are not read: [`Chain::open_checked`] does that.
    ///
    /// # Errors
    /// `NoGenerations`, `NoSuchGeneration`, `AllDamaged`; with `at` what is wrong with that chain.
    pub fn open(dir: &Path, at: Option<GenerationId>) -> Result<Opened, ImageError> {
        open_with(dir, at, &mut |_| Ok(()))
    }

    /// As [`Chain::open`], but a generation counts only if every block that it needs is read and found good. Blocks that newer
    /// ones have made superfluous are in nobody's way.
    ///
    /// `progress`: called with bytes done and bytes of this chain.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn open_checked(
        dir: &Path,
        at: Option<GenerationId>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Opened, ImageError> {
        open_with(dir, at, &mut |chain| chain.check_blocks(&mut progress))
    }

    /// Opens the generation in the file `path`, with its ancestors from the same directory.
    ///
    /// # Errors
    /// What is wrong with the file or an ancestor.
    pub fn open_file(path: &Path) -> Result<Chain, ImageError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        retry(|| Chain::load(dir, Generation::open(path)?))
    }

    /// A chain of generations that the caller opened, newest first.
    ///
    /// # Errors
    /// `Misuse` when none is given, `MissingParent` when one does not follow upon the next or the last is not full,
    /// `Refused` when they are of different jobs, `MixedOwners` when files belong to different users,
    /// `Busy` while a prune replaces one of them.
    pub fn from_generations(generations: Vec<Generation>) -> Result<Chain, ImageError> {
        let Some(first) = generations.first() else {
            return Err(ImageError::Misuse("a chain of no generations".into()));
        };
        let (job, owner) = (first.header().job, first.owner_uid());
        for (place, generation) in generations.iter().enumerate() {
            let Header { id, parent, .. } = *generation.header();
            let next = generations.get(place + 1).map(|next| next.header().id);
            if generation.header().job != job {
                let what = "it belongs to another job than its descendants".to_string();
                return Err(ImageError::refused(
                    generation.path(),
                    Fault::Damaged { section: super::Section::Header, what },
                ));
            }
            if generation.owner_uid() != owner {
                let (path, found) = (generation.path().to_path_buf(), generation.owner_uid());
                return Err(ImageError::MixedOwners { path, found, expected: owner });
            }
            if let Some(parent) = parent.filter(|_| parent != next) {
                return Err(ImageError::MissingParent { path: generation.path().into(), id, parent });
            }
            if parent.is_none() && next.is_some() {
                return Err(ImageError::Misuse(format!("generation {id} is full and cannot have ancestors")));
            }
        }
        if let Some(busy) = generations.iter().find(|found| !publish::lock_for_reading(found.file())) {
            return Err(ImageError::Busy { path: busy.path().into() });
        }
        Ok(Chain { generations: Arc::new(generations) })
    }

    /// Completes `newest` with its ancestors in `dir`.
    fn load(dir: &Path, newest: Generation) -> Result<Chain, ImageError> {
        let mut generations = vec![newest];
        while let Some(child) = generations.last()
            && let Some(parent) = child.header().parent
        {
            let path = dir.join(publish::file_name(parent));
            let missing = |error: ImageError| match error.is_not_found() {
                true => {
                    ImageError::MissingParent { path: child.path().into(), id: child.header().id, parent }
                }
                false => error,
            };
            let generation = named(&path, parent).map_err(missing)?;
            generations.push(generation);
        }
        Chain::from_generations(generations)
    }

    /// Newest first; the last one is full.
    #[must_use]
    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    /// The generation that this chain restores.
    #[must_use]
    pub fn newest(&self) -> &Generation {
        &self.generations[0]
    }

    /// Owner of all files of the chain (fstat when they were opened).
    #[must_use]
    pub fn owner_uid(&self) -> u32 {
        self.newest().owner_uid()
    }

    /// Every space that has pages or live ranges in the newest generation, and all of its ancestors' where the
    /// newest does not know its live ranges.
    #[must_use]
    pub fn spaces(&self) -> Vec<SpaceId> {
        let known = self.generations.iter().position(|generation| generation.index.live_known);
        let upto = known.map_or(self.generations.len(), |place| place + 1);
        let spaces = self.generations[..upto].iter().flat_map(|generation| generation.index.spaces.keys());
        spaces.copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Where the pages of `space` are at the newest generation.
    #[must_use]
    pub fn pages(&self, space: SpaceId) -> PageMap {
        PageMap::over(&self.generations, space)
    }

    /// A reader for one thread.
    #[must_use]
    pub fn reader(&self) -> PageReader {
        PageReader::new(Arc::clone(&self.generations))
    }

    /// Reads every block that the newest generation needs and compares its checksum, by more than one thread; `progress` gets
    /// bytes done and bytes in all.
    fn check_blocks(&self, mut progress: impl FnMut(u64, u64)) -> Result<(), ImageError> {
        let needed = self.needed_blocks();
        let length = |&(generation, number): &(usize, usize)| {
            self.generations[generation].index.blocks[number].length() as u64
        };
        let total = needed.iter().map(length).sum();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let work = |progress: &mut dyn FnMut(u64)| -> Result<(), ImageError> {
            let mut bytes = Vec::new();
            while let Some(block) = needed.get(next.fetch_add(1, Relaxed)) {
                self.generations[block.0].check_block(block.1, &mut bytes).inspect_err(|_| {
                    // Nobody begins another one.
                    next.store(needed.len(), Relaxed);
                })?;
                progress(done.fetch_add(length(block), Relaxed) + length(block));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            // Where no thread is to be had, this one does it alone.
            let begin = |_| Builder::new().spawn_scoped(scope, || work(&mut |_| ())).ok();
            let others: Vec<_> = (1..THREADS).filter_map(begin).collect();
            let own = work(&mut |done| progress(done, total));
            let joined =
                others.into_iter().map(|thread| thread.join().unwrap_or(Err(ImageError::WorkerGone)));
            joined.fold(own, Result::and)
        })
    }

    /// Places of generations in the chain and numbers of blocks in them, in the order of their files.
    fn needed_blocks(&self) -> Vec<(usize, usize)> {
        let mut needed = BTreeSet::new();
        for space in self.spaces() {
            for run in self.pages(space).runs() {
                if let Source::Stored { generation, block, .. } = run.source {
                    let number = self.generations[generation].index.block_at(block);
                    needed.extend(number.map(|number| (generation, number)));
                }
            }
        }
        needed.into_iter().collect()
    }
}

/// Opens the file of generation `id`, which must say so itself.
pub(super) fn named(path: &Path, id: GenerationId) -> Result<Generation, ImageError> {
    let generation = Generation::open_in_directory(path)?;
    if generation.header().id != id {
        let what = format!("it says that it is generation {}: was it renamed?", generation.header().id);
        return Err(ImageError::refused(path, Fault::Damaged { section: super::Section::Header, what }));
    }
    Ok(generation)
}

/// Opens generation `id` with its ancestors.
pub(super) fn open_exactly(dir: &Path, id: GenerationId) -> Result<Chain, ImageError> {
    retry(|| Chain::load(dir, named(&dir.join(publish::file_name(id)), id)?))
}

/// Tries again while prune may be at work on the same files.
fn retry(open: impl Fn() -> Result<Chain, ImageError>) -> Result<Chain, ImageError> {
    for attempt in 1..TRIES {
        match open() {
            Err(ImageError::Busy { .. }) => {}
            // A parent is deleted only after its child has become full: look at the child again.
            Err(ImageError::MissingParent { .. }) if attempt <= TRIES_FOR_PARENT => {}
            done => return done,
        }
        std::thread::sleep(PAUSE);
    }
    open()
}

fn open_with(
    dir: &Path,
    at: Option<GenerationId>,
    check: &mut dyn FnMut(&Chain) -> Result<(), ImageError>,
) -> Result<Opened, ImageError> {
    for _ in 1..TRIES {
        match open_listed(dir, at, check) {
            // Listed, and pruned before it was opened: newer ones have come since.
            Err(error) if error.is_not_found() && dir.is_dir() => {}
            done => return done,
        }
    }
    open_listed(dir, at, check)
}

fn open_listed(
    dir: &Path,
    at: Option<GenerationId>,
    check: &mut dyn FnMut(&Chain) -> Result<(), ImageError>,
) -> Result<Opened, ImageError> {
    let mut left = publish::ids(dir)?;
    // What is wrong with it; or what may be over the next time, and is no reason to go back.
    let mut open = |id| -> Result<Result<Chain, ImageError>, ImageError> {
        let chain = match open_exactly(dir, id) {
            Ok(chain) => chain,
            Err(error) => return Ok(Err(error)),
        };
        match check(&chain) {
            Err(error) if !error.is_damage() => Err(error),
            checked => Ok(checked.map(|()| chain)),
        }
    };
    if let Some(id) = at {
        if !left.contains(&id) {
            return Err(ImageError::NoSuchGeneration { dir: dir.into(), id });
        }
        return Ok(Opened { chain: open(id)??, warnings: Vec::new() });
    }
    let Some(mut id) = left.pop() else {
        return Err(ImageError::NoGenerations { dir: dir.into() });
    };
    let mut faults: Vec<String> = Vec::new();
    loop {
        let error: ImageError = match open(id)? {
            Ok(chain) => {
                let taken = format!("; taking checkpoint {id} instead");
                let warnings = faults.into_iter().map(|fault| fault + &taken).collect();
                return Ok(Opened { chain, warnings });
            }
            Err(error) if error.is_not_found() => return Err(error),
            Err(error) => error,
        };
        faults.push(error.full_text());
        // The one before is its parent where the header can still be read: after `--at` that is another one than
        // the next lower number. Failing that, the next lower number.
        let parent = header_of(&dir.join(publish::file_name(id))).and_then(|header| header.parent);
        let next =
            parent.and_then(|parent| left.iter().position(|id| *id == parent)).or(left.len().checked_sub(1));
        match next {
            Some(place) => id = left.remove(place),
            None => return Err(ImageError::AllDamaged { dir: dir.into(), faults }),
        }
    }
}

//! Pre-copy: rounds beside the running program, so that little is left for the freeze.

use super::checkpoint::{CheckpointError, Checkpointer};
use super::tracer::Tracer;
use crate::image::GenerationWriter;
use crate::memory::pages;
use crate::memory::runs::PageSet;
use crate::sys::mem::Forced;
use crate::track::backend::Backend;
use crate::track::{direct, soft_dirty};
use std::io;
use std::sync::PoisonError;

/// Pre-copy ends when a round finds fewer pages than this (16 MiB are copied in some 3 ms) …
const SMALL: u64 = 4096;
/// … or after so many rounds: each writes dead copies.
const ROUNDS: usize = 4;
impl Checkpointer {
    /// Copies beside the running program until little is left.
    pub(super) fn rounds(
        &mut self,
        tracer: &Tracer,
        writer: &mut GenerationWriter,
    ) -> Result<(), CheckpointError> {
        let mut buffer = Vec::new();
        for round in 0..ROUNDS {
            let found = self.round(tracer, round == 0)?;
            let mut tracked = self.tracked();
            for (index, set) in &found {
                let space = &mut tracked.spaces[*index];
                let mut written = Ok(());
                let copied = Forced::open(space.pid).and_then(|forced| {
                    pages::copy(space.pid, &forced, set, &mut buffer, &mut |page, bytes| {
                        written = writer.put_pages(space.id, page, bytes);
                        if written.is_ok() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::Other)) }
                    })
                });
                written?;
                match copied {
                    Ok(unreadable) => space.missed(unreadable),
                    // On its way out, or another program by now: the freeze copies all that is dirty again.
                    Err(_) => space.again(),
                }
            }
            if found.iter().map(|(_, set)| set.len()).sum::<u64>() < SMALL {
                break;
            }
        }
        Ok(())
    }

    /// One look at every tracked space: which pages (of which space, by index) are to be copied.
    fn round(&self, tracer: &Tracer, first: bool) -> Result<Vec<(usize, PageSet)>, CheckpointError> {
        if self.backend == Backend::SoftDirty {
            let (root, tracked, kernel) = (self.root, self.tracked.clone(), self.kernel.clone());
            let round = move || {
                let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
                soft_dirty::round(root, &mut tracked.spaces, first, &kernel)
            };
            return Ok(tracer.run(round).ok_or(CheckpointError::NoTracer)??);
        }
        let mut tracked = self.tracked();
        let mut found = Vec::new();
        let mut direct = false;
        for (index, space) in tracked.spaces.iter_mut().enumerate().filter(|(_, s)| s.uffd.is_some()) {
            // A process that ends or executes another program meanwhile is seen by the freeze.
            let Ok(mappings) = space.mappings() else { continue };
            space.register(&mappings);
            let Ok(set) = space.round(&mappings, first) else { continue };
            direct |= direct::reads(space.pid);
            found.push((index, set));
        }
        tracked.direct |= direct;
        Ok(found)
    }
}

//! Pre-copy: rounds beside the running program, so that little is left for the freeze.

use super::checkpoint::{CheckpointError, Checkpointer, lock};
use super::tracer::Tracer;
use crate::freeze::tree;
use crate::image::GenerationWriter;
use crate::memory::pages;
use crate::memory::runs::PageSet;
use crate::sys::mem::Forced;
use crate::task::proc::reached_by;
use crate::track::backend::Backend;
use crate::track::direct::{self, InFlight};
use crate::track::precopy::Next;
use crate::track::soft_dirty;
use crate::track::space::Space;
use nix::unistd::Pid;
use std::io;

impl Checkpointer {
    /// Copies beside the running program until another round would not pay; returns how many there were.
    pub(super) fn rounds(
        &mut self,
        tracer: &Tracer,
        writer: &mut GenerationWriter,
    ) -> Result<u64, CheckpointError> {
        let shared = self.tracked.clone();
        if self.backend == Backend::PagemapScan {
            let tracked = lock(&shared);
            let watched = tracked.spaces.iter().filter(|s| s.uffd.is_some()).map(|s| s.pid);
            self.reconcile.attach(&self.kernel, &watched.collect::<Vec<Pid>>());
        }
        let (mut counts, mut buffer) = (Vec::new(), Vec::new());
        while self.reconcile.next(&counts) == Next::Round {
            self.reconcile.scan_begins();
            let found = self.round(tracer)?;
            let mut tracked = lock(&shared);
            self.reconcile.scanned(&mut tracked.spaces);
            for (index, set) in &found {
                let space = &mut tracked.spaces[*index];
                let mut written = Ok(());
                let pid = reached_by(space.pid);
                let copied = Forced::open(pid).and_then(|forced| {
                    pages::copy(pid, &forced, set, &mut buffer, &mut |page, bytes| {
                        self.reconcile.listen();
                        written = writer.put_pages(space.id, page, bytes);
                        if written.is_ok() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::Other)) }
                    })
                });
                written?;
                match copied {
                    Ok(unreadable) => space.missed(unreadable),
                    // On its way out, or another program by now: who looks next copies all that is dirty again.
                    Err(_) => space.again(),
                }
            }
            let mut copied = found.iter().map(|(_, set)| set.len()).sum::<u64>();
            // Later rounds would spare the freeze no look.
            if counts.is_empty() {
                for (index, _) in &found {
                    copied += self.compare(&mut tracked.spaces[*index], writer, &mut buffer)?;
                }
            }
            counts.push(copied);
        }
        Ok(counts.len() as u64)
    }

    /// Copies what has changed of the pages that are not watched; returns how many they were.
    fn compare(
        &mut self,
        space: &mut Space,
        writer: &mut GenerationWriter,
        buffer: &mut Vec<u8>,
    ) -> Result<u64, CheckpointError> {
        let (mut count, mut written) = (0, Ok(()));
        let (pid, id, set) = (reached_by(space.pid), space.id, space.to_compare());
        let copied = Forced::open(pid).and_then(|forced| {
            pages::copy(pid, &forced, &set, buffer, &mut |page, bytes| {
                self.reconcile.listen();
                count += space.differing(page, bytes, &mut |page, bytes| {
                    written = writer.put_pages(id, page, bytes);
                    if written.is_ok() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::Other)) }
                })?;
                Ok(())
            })
        });
        written?;
        // What could not be read by now is looked at in the freeze.
        drop(copied);
        Ok(count)
    }

    /// One look at every tracked space: which pages (of which space, by index) are to be copied.
    fn round(&self, tracer: &Tracer) -> Result<Vec<(usize, PageSet)>, CheckpointError> {
        if self.backend == Backend::SoftDirty {
            let (root, tracked, kernel) = (self.root, self.tracked.clone(), self.kernel.clone());
            let round = move || soft_dirty::round(root, &mut lock(&tracked).spaces, &kernel);
            return Ok(tracer.run(round).ok_or(CheckpointError::NoTracer)??);
        }
        let mut tracked = self.tracked();
        let mut found = Vec::new();
        let is_looked_at = |s: &Space| s.uffd.is_some() || s.crowded;
        for (index, space) in tracked.spaces.iter_mut().enumerate().filter(|(_, s)| is_looked_at(s)) {
            // A process that ends or executes another program meanwhile is seen by the freeze.
            let Ok(mappings) = space.mappings() else { continue };
            // Else the freeze sees to it.
            let _ = space.take_up(&mappings);
            let Ok(set) = space.round(&mappings) else { continue };
            found.push((index, set));
        }
        // All of them, also those that are not tracked yet: they may write to others.
        for (pid, _) in tree::members(self.root) {
            let InFlight { anywhere, into } = direct::in_flight(pid);
            tracked.direct |= anywhere;
            if let Some(space) = tracked.spaces.iter_mut().find(|space| space.pid == pid) {
                space.count_as_written(&into);
            }
        }
        Ok(found)
    }
}

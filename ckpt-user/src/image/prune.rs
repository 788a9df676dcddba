//! Merges and deletes old generations.
//!
//! ```text
//! plan ─▶ last kept one: merge ─▶ lease ─▶ rename over itself ─▶ fsync dir ─▶ delete the rest, newest first
//! ```
//! At every moment each kept generation has all it needs under its name: before the rename its ancestors, after it
//! the merged file. Deleting newest first leaves no generation without its ancestors either.

use super::plan::{Node, plan};
use super::publish::{self, lock_for_pruning};
use super::{Fault, GenerationId, ImageError, chain, generation, merge};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// Damage in the pages of generations.
pub type Unsound = BTreeMap<GenerationId, String>;

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PruneReport {
    /// The generations that were to be kept: the newest one and its ancestors first.
    pub kept: Vec<GenerationId>,
    /// The one that was rewritten as a full generation.
    pub merged: Option<GenerationId>,
    /// In the order of deletion.
    pub deleted: Vec<GenerationId>,
    /// Not merged or deleted this time, because they or their descendants are in use.
    pub in_use: Vec<GenerationId>,
    /// What is wrong with files that cannot be restarted from and were left.
    pub damaged: Vec<String>,
    /// Length of the deleted files, less what the merged one grew by, in bytes.
    pub bytes_freed: i64,
}

/// Keeps `keep` (at least 1) restartable generations, or all where there are fewer: the newest one and its ancestors, and where
/// that chain ends before, at a full one, the newest of the others and theirs.
///
/// The last kept one becomes a full generation under the same id; then all others go, old branches included. Left
/// alone are the generations `in_use`, those that readers hold (their locks), the ancestors of both, and
/// damaged files newer than the oldest that is kept. `check_lease` is asked before the rename and before each deletion.
///
/// # Errors
/// `Lease` with the reason of `check_lease`; `Refused` for a generation of a newer ckptbpf in the directory, or damage
/// met while merging; `Owner`, `Full`, `Io`. What had been done until then is consistent: prune again.
pub fn prune(
    dir: &Path,
    keep: usize,
    in_use: &[GenerationId],
    check_lease: impl FnMut() -> Result<(), String>,
) -> Result<PruneReport, ImageError> {
    prune_while(dir, keep, (in_use, &BTreeMap::new()), check_lease, &|_, _| true)
}

/// The same; merging is given up once it no longer `goes_on`, which is asked with pages written and pages in all, and what needs
/// none is done. `unsound`: what is wrong with those that nothing can be restarted from, though they look whole.
pub fn prune_while(
    dir: &Path,
    keep: usize,
    (in_use, unsound): (&[GenerationId], &Unsound),
    mut check_lease: impl FnMut() -> Result<(), String>,
    goes_on: &dyn Fn(u64, u64) -> bool,
) -> Result<PruneReport, ImageError> {
    let mut report = PruneReport::default();
    let nodes = survey(dir, unsound, &mut report)?;
    let mut in_use: BTreeSet<GenerationId> = in_use.iter().copied().collect();
    for id in nodes.keys() {
        if lock(dir, *id)?.is_none() {
            in_use.insert(*id);
        }
    }
    let mut steps = plan(&nodes, keep, &in_use);
    if let Some(id) = steps.merge {
        let chain = chain::open_exactly(dir, id)?;
        let before = chain.newest().file_length();
        match merge::merge(dir, chain, &mut check_lease, goes_on)? {
            Some(committed) => {
                report.merged = Some(id);
                report.bytes_freed -= committed.summary.bytes_stored.cast_signed() - before.cast_signed();
            }
            None => {
                in_use.insert(id);
                steps = plan(&nodes, keep, &in_use);
            }
        }
    }
    report.kept = steps.kept;
    report.in_use = steps.held;
    let mut spared = BTreeSet::new();
    for id in steps.delete {
        check_lease().map_err(|reason| ImageError::Lease { dir: dir.into(), reason })?;
        // A reader may have come since the plan was made; then its ancestors stay, too.
        match lock(dir, id)?.filter(|_| !spared.contains(&id)) {
            Some(file) => {
                let path = dir.join(publish::file_name(id));
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                std::fs::remove_file(&path).map_err(|error| ImageError::io("delete", &path, error))?;
                report.bytes_freed += length.cast_signed();
                report.deleted.push(id);
            }
            None => {
                spared.extend(nodes.get(&id).and_then(|node| node.parent));
                report.in_use.push(id);
            }
        }
    }
    let synced = File::open(dir).and_then(|directory| directory.sync_all());
    synced.map_err(|error| ImageError::io("make durable", dir, error))?;
    Ok(report)
}

fn lock(dir: &Path, id: GenerationId) -> Result<Option<File>, ImageError> {
    lock_for_pruning(&dir.join(publish::file_name(id)))
}

/// Opens every generation.
fn survey(
    dir: &Path,
    unsound: &Unsound,
    report: &mut PruneReport,
) -> Result<BTreeMap<GenerationId, Node>, ImageError> {
    let mut nodes: BTreeMap<GenerationId, Node> = BTreeMap::new();
    for id in publish::ids(dir)? {
        let path = dir.join(publish::file_name(id));
        let (parent, restartable) = match chain::named(&path, id) {
            Ok(generation) => {
                let parent = generation.header().parent;
                let whole = |parent: GenerationId| nodes.get(&parent).is_some_and(|node| node.restartable);
                let damage = unsound.get(&id);
                report.damaged.extend(damage.cloned());
                (parent, damage.is_none() && parent.is_none_or(whole))
            }
            // A newer ckptbpf can restart from it, and from what is below it: not ours to judge.
            Err(
                error @ ImageError::Refused {
                    fault: Fault::FutureVersion { .. } | Fault::UnknownFeature { .. },
                    ..
                },
            ) => {
                return Err(error);
            }
            Err(error) => {
                report.damaged.push(error.full_text());
                (generation::header_of(&path).and_then(|header| header.parent), false)
            }
        };
        nodes.insert(id, Node { id, parent, restartable });
    }
    Ok(nodes)
}

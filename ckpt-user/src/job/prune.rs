//! Merging and deleting while no job runs; a running job does it itself, between its checkpoints.

use std::path::Path;
use std::sync::Arc;

use super::directory::{DirectoryError, JobDir};
use super::ended::FAILED;
use super::identity::{Identity, IdentityError};
use super::lease::{Claim, Lease, Purpose};
use super::record::RecordedOptions;
use super::retention::KEEP;
use crate::image::{self, ImageError};

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What the person should be told.
    pub notes: Vec<String>,
    /// Generations that stay.
    pub kept: usize,
    /// Generations that are gone.
    pub deleted: usize,
    /// Bytes that the directory takes less.
    pub bytes_freed: u64,
}

/// Why it was not.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The user.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The generations.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Prunes the directory of a job that does not run; `keep` as given, else as the job recorded, else [`KEEP`].
pub fn prune(path: &Path, keep: Option<usize>, take_over: bool) -> Result<Pruned, PruneError> {
    let dir = Arc::new(JobDir::open(path, &Identity::of_caller(None)?.fs_ids())?);
    dir.require_checkpoints()?;
    let claim =
        Claim { purpose: Purpose::Prune, take_over, options: RecordedOptions::default(), argv: Vec::new() };
    let claimed = Lease::claim(&dir, claim)?;
    let lease = claimed.lease;
    let keep = keep.or(lease.record().options.keep).unwrap_or(KEEP);
    let size = || -> Result<(usize, u64), DirectoryError> {
        let _as = dir.assume()?;
        let files = dir.generations()?.into_iter().filter_map(|id| {
            std::fs::metadata(path.join(image::file_name(image::GenerationId(id))))
                .ok()
                .map(|found| found.len())
        });
        Ok(files.fold((0, 0), |(count, bytes), length| (count + 1, bytes + length)))
    };
    let (files_before, bytes_before) = size()?;
    let pruned = {
        let _as = dir.assume()?;
        image::prune(path, keep, &[], &mut || lease.check().map_err(|error| error.to_string()))
    };
    // The record says again what it said before: that the job is over.
    lease.end(claimed.previous.and_then(|record| record.ended).unwrap_or(FAILED))?;
    pruned?;
    let (kept, bytes_after) = size()?;
    Ok(Pruned {
        notes: claimed.notes,
        kept,
        deleted: files_before.saturating_sub(kept),
        bytes_freed: bytes_before.saturating_sub(bytes_after),
    })
}

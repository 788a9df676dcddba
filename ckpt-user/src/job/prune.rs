//! Merging and deleting while no job runs; a running job does it itself, between its checkpoints.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use super::bar::Bar;
use super::directory::{DirectoryError, JobDir};
use super::ended::FAILED;
use super::identity::{Identity, IdentityError};
use super::lease::{Claim, Lease, Purpose};
use super::record::RecordedOptions;
use super::retention::KEEP;
use crate::image::{self, ImageError, PruneReport, Unsound};

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
/// Beside the report: what the person should be told, a line each.
pub fn prune(
    path: &Path,
    keep: Option<usize>,
    take_over: bool,
) -> Result<(PruneReport, Vec<String>), PruneError> {
    let dir = Arc::new(JobDir::open(path, &Identity::of_caller(None)?.fs_ids())?);
    dir.require_checkpoints()?;
    let claim =
        Claim { purpose: Purpose::Prune, take_over, options: RecordedOptions::default(), argv: Vec::new() };
    let claimed = Lease::claim(&dir, claim)?;
    let lease = claimed.lease;
    let keep = keep.or(lease.record().options.keep).unwrap_or(KEEP);
    let report = {
        let _as = dir.assume()?;
        // Somebody asks for it, and it deletes for good: of what stays every byte is read first.
        let unsound = unsound(path)?;
        let bar = RefCell::new(Bar::new("prune"));
        let goes_on = |done, total| {
            bar.borrow_mut().set(done, total);
            true
        };
        let check = || lease.check().map_err(|error| error.to_string());
        image::prune_while(path, keep, (&[], &unsound), check, &goes_on)
    };
    // The record says again what it said before: that the job is over.
    lease.end(claimed.previous.and_then(|record| record.ended).unwrap_or(FAILED))?;
    let report = report?;
    let bytes_freed = report.bytes_freed + claimed.freed.cast_signed();
    Ok((PruneReport { bytes_freed, ..report }, claimed.notes))
}

/// What verify finds.
fn unsound(dir: &Path) -> Result<Unsound, ImageError> {
    let mut bar = Bar::new("prune: reading");
    let found = image::verify(dir, |done, total| bar.set(done, total))?;
    Ok(found.generations.into_iter().filter_map(|one| Some((one.id?, one.damage?))).collect())
}

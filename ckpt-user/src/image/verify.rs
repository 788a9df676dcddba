//! Reads every byte of a directory or of one generation's chain.

use super::generation::Generation;
use super::{GenerationId, ImageError, chain, publish};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One generation as found.
#[derive(Clone, Debug)]
pub struct VerifiedGeneration {
    /// By the file's name, or by its header when a single file was given.
    pub id: Option<GenerationId>,
    pub path: PathBuf,
    /// What is wrong with this file.
    pub damage: Option<String>,
    /// It and every ancestor are undamaged.
    pub restartable: bool,
}

/// Every generation, ascending by id.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    pub generations: Vec<VerifiedGeneration>,
    /// Bytes of page blocks that were read.
    pub bytes_read: u64,
}

impl VerifyReport {
    /// Whether there is something and all of it can be restarted from.
    #[must_use]
    pub fn all_restartable(&self) -> bool {
        !self.generations.is_empty() && self.generations.iter().all(|generation| generation.restartable)
    }
}

/// Verifies every generation of the directory `path`, or the generation in the file `path` with its ancestors.
///
/// `progress`: called with bytes of page blocks read and to be read in all.
///
/// # Errors
/// `Io` when the directory cannot be read. Damage is in the report.
pub fn verify(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport, ImageError> {
    let metadata = std::fs::metadata(path).map_err(|error| ImageError::io("read", path, error))?;
    let mut opened: Vec<(Option<GenerationId>, PathBuf, Result<Generation, ImageError>)> = Vec::new();
    if metadata.is_dir() {
        for id in publish::ids(path)? {
            let file = path.join(publish::file_name(id));
            let generation = chain::named(&file, id);
            // Pruned since the directory was read?
            if !generation.as_ref().is_err_and(ImageError::is_not_found) {
                opened.push((Some(id), file, generation));
            }
        }
    } else {
        let mut next = Some((None, path.to_path_buf(), Generation::open(path)));
        while let Some((id, file, generation)) = next.take() {
            let header = generation.as_ref().ok().map(Generation::header);
            let id = id.or(header.map(|header| header.id));
            if let Some(parent) = header.and_then(|header| header.parent) {
                let file = path.with_file_name(publish::file_name(parent));
                if file.exists() {
                    let generation = chain::named(&file, parent);
                    next = Some((Some(parent), file, generation));
                }
            }
            opened.insert(0, (id, file, generation));
        }
    }
    let blocks = opened.iter().filter_map(|(_, _, generation)| generation.as_ref().ok());
    let total =
        blocks.flat_map(|generation| &generation.index.blocks).map(|block| block.length() as u64).sum();
    let mut report = VerifyReport::default();
    // Parents come first: a parent's id is smaller.
    let mut good: BTreeMap<GenerationId, [u8; 16]> = BTreeMap::new();
    for (id, path, generation) in opened {
        let checked = generation.and_then(|generation| {
            generation.check_blocks(&mut |bytes| {
                report.bytes_read += bytes;
                progress(report.bytes_read, total);
            })?;
            Ok(generation)
        });
        let (damage, restartable) = match checked {
            Ok(generation) => {
                let header = generation.header();
                let restartable = header.parent.is_none_or(|parent| good.get(&parent) == Some(&header.job));
                if restartable {
                    good.insert(header.id, header.job);
                }
                (None, restartable)
            }
            Err(error) => (Some(error.full_text()), false),
        };
        report.generations.push(VerifiedGeneration { id, path, damage, restartable });
    }
    Ok(report)
}

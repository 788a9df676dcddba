//! What is in a directory.

use super::{GenerationId, Header, ImageError, Summary, chain, generation, publish};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One file of a job's directory.
#[derive(Clone, Debug)]
pub struct Listed {
    pub id: GenerationId,
    pub path: PathBuf,
    /// `None` where not even the header can be read.
    pub header: Option<Header>,
    /// `None` when the file is damaged.
    pub summary: Option<Summary>,
    /// What is wrong with this file.
    pub damage: Option<String>,
    /// Whether it and all its ancestors open: it can be restarted from as far as can be told without reading every
    /// byte.
    pub complete: bool,
}

/// Lists the generations in `dir`, newest last. Page blocks are not read.
///
/// # Errors
/// `Io` when the directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<Listed>, ImageError> {
    let mut listed = Vec::new();
    // By ascending id, so that a parent, which is smaller, comes first.
    let mut complete: BTreeMap<GenerationId, [u8; 16]> = BTreeMap::new();
    for id in publish::ids(dir)? {
        let path = dir.join(publish::file_name(id));
        listed.push(match chain::named(&path, id) {
            Ok(generation) => {
                let header = generation.header().clone();
                let whole = header.parent.is_none_or(|parent| complete.get(&parent) == Some(&header.job));
                if whole {
                    complete.insert(id, header.job);
                }
                let summary = Some(generation.summary().clone());
                Listed { id, path, header: Some(header), summary, damage: None, complete: whole }
            }
            // Pruned since the directory was read.
            Err(error) if error.is_not_found() => continue,
            Err(error) => {
                let (header, damage) = (generation::header_of(&path), Some(error.full_text()));
                Listed { id, path, header, summary: None, damage, complete: false }
            }
        });
    }
    Ok(listed)
}

/// The id for the next generation in `dir`: one more than the highest there, damaged ones included, and than `last`, which was the
/// highest once; 1 at first.
///
/// # Errors
/// `Io` when the directory cannot be read, `NoIdLeft` when there is no higher number.
pub fn next_id(dir: &Path, last: Option<GenerationId>) -> Result<GenerationId, ImageError> {
    let highest = publish::ids(dir)?.last().copied().max(last).map_or(0, |id| id.0);
    highest.checked_add(1).map(GenerationId).ok_or_else(|| ImageError::NoIdLeft { dir: dir.into() })
}

/// The first of generation `id` and its ancestors that is no longer in `dir`, by the headers of their files alone.
#[must_use]
pub fn missing(dir: &Path, id: GenerationId) -> Option<GenerationId> {
    let mut next = Some(id);
    while let Some(id) = next {
        let header = generation::header_of(&dir.join(publish::file_name(id)));
        match header.filter(|header| header.id == id && header.parent.is_none_or(|parent| parent < id)) {
            Some(header) => next = header.parent,
            None => return Some(id),
        }
    }
    None
}

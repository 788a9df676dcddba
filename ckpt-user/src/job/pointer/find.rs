//! From pointers, as a script's pattern has found them, to the one directory to restart from.

use super::{LIMIT, NoPointer, Pointer};
use crate::job::directory::{DirectoryError, JobDir};
use crate::job::lease;
use crate::sys::ids::FsIds;
use nix::sys::stat::fstat;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// As where a pattern has found nothing.
    #[error("{0}: there is no such file: no checkpoint has been made yet, or somebody has removed it")]
    Missing(String),
    /// A file of another kind.
    #[error("{file}: {why}")]
    NoPointer {
        /// As it was given.
        file: String,
        /// What it is.
        why: NoPointer,
    },
    /// What it leads to may be anywhere.
    #[error("{0}: this is a symbolic link: name the file that it leads to")]
    Link(String),
    /// A system call failed.
    #[error("{file}: cannot read it")]
    Io {
        /// As it was given.
        file: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file alone is left.
    #[error(
        "{file}: its checkpoints are gone: they are in none of {places}; move both together, or launch the program anew"
    )]
    Gone {
        /// As it was given.
        file: String,
        /// Where they could be.
        places: String,
    },
    /// Something else is in their place.
    #[error("{file}: {dir} holds the checkpoints of another job; to restart that: ckptbpf restart {dir}")]
    Another {
        /// As it was given.
        file: String,
        /// Where its checkpoints should be.
        dir: String,
    },
    /// Neither job.json nor a checkpoint says it.
    #[error(
        "{file}: nobody can tell whose checkpoints {dir} holds: its job.json is lost, and none of them can be read; to try \
         them: ckptbpf restart {dir}"
    )]
    Nameless {
        /// As it was given.
        file: String,
        /// Where its checkpoints should be.
        dir: String,
    },
    /// They cannot be restarted together, and nobody guesses which is meant.
    #[error("these are checkpoints of several jobs or copies of one: {0}; name one, and remove what is over")]
    Several(String),
    /// A job's directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// What a pointer has led to.
struct Found<'f> {
    file: &'f Path,
    dir: PathBuf,
    /// Device and number of the directory: a copy of it is another one, which has gone its own way.
    id: (u64, u64),
}

/// The directory that the pointers lead to, and what is to be said of some of them. Several of one directory count once; those whose
/// checkpoints are gone count where there are no others.
///
/// # Errors
/// There is no such directory, or more than one; or a file is no pointer.
pub fn find(files: &[PathBuf], caller: &FsIds) -> Result<(PathBuf, Vec<String>), FindError> {
    let mut found: Vec<Found<'_>> = Vec::new();
    let mut gone = Vec::new();
    for file in files {
        let pointer = read(file, caller)?;
        match locate(file, &pointer, caller) {
            Ok(one) if found.iter().any(|other| other.id == one.id) => {}
            Ok(one) => found.push(one),
            Err(error @ FindError::Gone { .. }) => gone.push(error),
            Err(error) => return Err(error),
        }
    }
    match (found.as_slice(), gone.is_empty()) {
        ([one], _) => Ok((one.dir.clone(), gone.iter().map(ToString::to_string).collect())),
        ([], false) => Err(gone.swap_remove(0)),
        ([], true) => Err(FindError::Missing("ckpt_*.dmtcp".into())),
        (several, _) => {
            let names: Vec<String> = several.iter().map(|one| one.file.display().to_string()).collect();
            Err(FindError::Several(names.join(", ")))
        }
    }
}

fn read(file: &Path, caller: &FsIds) -> Result<Pointer, FindError> {
    let shown = || file.display().to_string();
    let other = |why| FindError::NoPointer { file: shown(), why };
    let fail = |source: io::Error| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => FindError::Missing(shown()),
        _ => io_error(file, source),
    };
    let _as = caller.assume().map_err(fail)?;
    let found = fs::symlink_metadata(file).map_err(fail)?;
    if found.is_symlink() {
        return Err(FindError::Link(shown()));
    }
    // To open a device or a FIFO may do something.
    if !found.is_file() {
        return Err(other(NoPointer::Other));
    }
    let mut bytes = Vec::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let open = |more: i32| File::options().read(true).custom_flags(flags | more).open(file);
    // To restart from it is not to copy it ([`super::keep`]); only its owner may say so.
    let opened = open(libc::O_NOATIME).or_else(|_| open(0)).map_err(fail)?;
    opened.take(LIMIT + 1).read_to_end(&mut bytes).map_err(fail)?;
    Pointer::parse(&bytes).map_err(other)
}

fn io_error(file: &Path, source: io::Error) -> FindError {
    FindError::Io { file: file.display().to_string(), source }
}

/// Where the checkpoints of a pointer are now.
fn locate<'f>(file: &'f Path, pointer: &Pointer, caller: &FsIds) -> Result<Found<'f>, FindError> {
    let places = pointer.places(file);
    for place in &places {
        let dir = match JobDir::open(place, caller) {
            Ok(dir) => dir,
            Err(DirectoryError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if dir.generations()?.is_empty() {
            continue;
        }
        let recorded = dir.read_record()?.map(|record| record.job);
        // As a restart has it where job.json is lost.
        let job = recorded.or_else(|| lease::job_of_generations(&dir));
        if job.as_ref() != Some(&pointer.job) {
            let (file, dir) = (file.display().to_string(), place.display().to_string());
            return Err(match job {
                Some(_) => FindError::Another { file, dir },
                None => FindError::Nameless { file, dir },
            });
        }
        let stat = fstat(&dir).map_err(|errno| io_error(file, errno.into()))?;
        return Ok(Found { file, dir: place.clone(), id: (stat.st_dev, stat.st_ino) });
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(FindError::Gone { file: file.display().to_string(), places: places.join(", ") })
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;

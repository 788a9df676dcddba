//! What can go wrong with an image, in words that say what to do next.

use super::GenerationId;
use std::io;
use std::path::{Path, PathBuf};

/// The part of a file in which damage was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Header,
    Block,
    Index,
    Metadata,
    Summary,
    Footer,
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Section::Header => "header",
            Section::Block => "page block",
            Section::Index => "page index",
            Section::Metadata => "metadata",
            Section::Summary => "summary",
            Section::Footer => "footer",
        })
    }
}

/// Why a file is refused, without its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("not a checkpoint file")]
    NotAnImage,
    #[error(
        "its line ends or high bits were changed by a text-mode transfer; copy it again in binary mode \
         (scp, rsync, `ftp> binary`)"
    )]
    TextMode,
    #[error(
        "written in format version {found}, this ckptbpf reads up to {}; use the newer ckptbpf",
        super::FORMAT_VERSION
    )]
    FutureVersion { found: u32 },
    #[error("needs the feature {name:?}, which this ckptbpf does not know; use the newer ckptbpf")]
    UnknownFeature { name: String },
    #[error("incomplete: {what}; the copy or the write was cut short")]
    Incomplete { what: String },
    #[error("damaged {section}: {what}")]
    Damaged { section: Section, what: String },
}

impl Fault {
    pub(super) fn damaged(section: Section, what: impl Into<String>) -> Fault {
        Fault::Damaged { section, what: what.into() }
    }
}

/// Errors of this module. The message names file and remedy; the operating system's word is the `source`.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot {doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "no space left to write {path}: free some (df, quota -s) or choose another directory with -d; \
         earlier checkpoints are untouched"
    )]
    Full { path: PathBuf, source: io::Error },
    #[error("{path} is on a read-only file system: choose a directory for new checkpoints with -d")]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error("{path} would be larger than the file-size limit: raise it (ulimit -f unlimited)")]
    FileLimit { path: PathBuf, source: io::Error },
    #[error(
        "{path} exists: another ckptbpf writes this directory; stop it (ckptbpf status), or use another -d"
    )]
    Exists { path: PathBuf },
    #[error("{path} is just being replaced or deleted by a prune: try again")]
    Busy { path: PathBuf },
    #[error("this job no longer owns {dir}: {reason}; nothing was committed")]
    Lease { dir: PathBuf, reason: String },
    #[error("{path}: {fault}")]
    Refused { path: PathBuf, fault: Fault },
    #[error("{path} belongs to user {owner}: do this as that user (sudo -u '#{owner}' …)")]
    Owner { path: PathBuf, owner: u32 },
    #[error(
        "{path} belongs to user {found}, but what is built upon it to user {expected}: it is not trusted"
    )]
    MixedOwners { path: PathBuf, found: u32, expected: u32 },
    #[error(
        "{path} is generation {id} and needs generation {parent}, which is not there; take another with --at"
    )]
    MissingParent { path: PathBuf, id: GenerationId, parent: GenerationId },
    #[error("no checkpoint in {dir}: is it the right directory? `ckptbpf list {dir}` shows what is there")]
    NoGenerations { dir: PathBuf },
    #[error("no checkpoint {id} in {dir}: `ckptbpf list {dir}` shows which there are")]
    NoSuchGeneration { dir: PathBuf, id: GenerationId },
    #[error(
        "{dir} holds a file with the highest number that there is: move it away, or choose another with -d"
    )]
    NoIdLeft { dir: PathBuf },
    #[error("no checkpoint in {dir} can be restarted from:\n  {}", .faults.join("\n  "))]
    AllDamaged { dir: PathBuf, faults: Vec<String> },
    #[error("a compression thread of the image writer ended early; this checkpoint is given up")]
    WorkerGone,
    /// The caller broke the contract of a function; a defect of ckptbpf, never of a file.
    #[error("image: {0}")]
    Misuse(String),
}

impl ImageError {
    /// Sorts an operating-system error into the kinds that have a remedy of their own.
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> ImageError {
        let path = path.to_path_buf();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ImageError::Full { path, source },
            Some(libc::EROFS) => ImageError::ReadOnly { path, source },
            Some(libc::EFBIG) => ImageError::FileLimit { path, source },
            _ => ImageError::Io { doing, path, source },
        }
    }

    pub(super) fn refused(path: &Path, fault: Fault) -> ImageError {
        ImageError::Refused { path: path.to_path_buf(), fault }
    }

    /// Whether the file is not what was written, or its disk cannot read it: the next time it will be no better.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            ImageError::Refused { .. } => true,
            ImageError::Io { source, .. } => {
                source.kind() == io::ErrorKind::UnexpectedEof || source.raw_os_error() == Some(libc::EIO)
            }
            _ => false,
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, ImageError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The message with the operating system's word at its end, for warnings that are kept as text.
    #[must_use]
    pub fn full_text(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

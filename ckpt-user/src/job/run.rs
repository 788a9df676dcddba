//! `run`'s decision: is there something to restart from?

use std::io;
use std::path::PathBuf;

use super::directory::{DirectoryError, JobDir, resolve_here};
use super::identity::{Identity, IdentityError};
use super::options::LaunchOptions;

/// Why it cannot be decided.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The user.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The directory to restart from; none: launch. A directory whose checkpoints are damaged is restarted from, and
/// that says what is wrong: a run never begins anew because of damage.
pub fn choose(options: &LaunchOptions) -> Result<Option<PathBuf>, RunError> {
    if options.new {
        return Ok(None);
    }
    let program = options.program.first().map(AsRef::as_ref).unwrap_or_default();
    let path = resolve_here(options.job.dir.as_deref(), program);
    let caller = Identity::of_caller(options.user.as_deref())?;
    match JobDir::open(&path, &caller.fs_ids()) {
        Ok(dir) => Ok((!dir.generations()?.is_empty()).then_some(path)),
        Err(DirectoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::options::JobOptions;

    #[test]
    fn a_checkpoint_means_restart_and_anything_else_launch() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("d");
        let job = JobOptions { dir: Some(dir.clone()), ..Default::default() };
        let options = LaunchOptions { job, program: vec!["./count".into()], ..Default::default() };
        assert_eq!(choose(&options).unwrap(), None);
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(choose(&options).unwrap(), None);
        std::fs::write(dir.join("000001.ckpt"), "damaged").unwrap();
        assert_eq!(choose(&options).unwrap(), Some(dir));
        assert_eq!(choose(&LaunchOptions { new: true, ..options }).unwrap(), None);
    }
}

//! `dmtcp_restart`: the job that the pointers lead to.

use super::options::Asked;
use super::{common, job, joined, with_path};
use crate::job::directory::DirectoryError;
use crate::job::ended::Ended;
use crate::job::identity::Identity;
use crate::job::pointer::find;
use crate::job::slurm::decide;
use crate::job::slurm::place::SlurmRun;
use crate::job::terminal::say;
use crate::sys::ids::FsIds;
use anyhow::{Context, anyhow, bail};
use std::ffi::OsString;
use std::path::PathBuf;

/// Runs it again to its end.
///
/// # Errors
/// There is no such job, or it is not restarted.
pub fn run(asked: &Asked) -> anyhow::Result<Ended> {
    let caller = Identity::of_caller(None)?.fs_ids();
    let (dir, said) = find::find(&files(asked, &caller)?, &caller)?;
    said.iter().for_each(|line| say(line));
    // Before a worker is asked: Slurm is asked in the job alone.
    decide::require_over(&dir, decide::record_of(&dir)?.as_ref(), SlurmRun::here().as_ref())?;
    let (name, state) = joined::joined(asked, &caller)?;
    joined::write_port(asked, name, &caller)?;
    // Whoever calls DMTCP's restart knows that the job is over, wherever it was; on this host it is looked whether it is, and Slurm was
    // asked of a job of its own. And DMTCP has no clocks but those of the machine.
    let words = ["ckptbpf", "restart", "--take-over", "--clocks=jump"];
    let mut words: Vec<OsString> = words.map(OsString::from).to_vec();
    words.extend(common(asked, name, state.as_ref()));
    if let Some(above) = &asked.checkpoint_dir {
        let own = dir.file_name().context("a job's directory has a name")?;
        words.push(with_path("--dir", above.join(own)));
    }
    words.extend([OsString::from("--"), dir.into()]);
    job(words, name).map_err(|error| match error.downcast_ref::<DirectoryError>() {
        Some(DirectoryError::ReadOnly { .. } | DirectoryError::HoldsCheckpoints { .. }) => {
            anyhow!("{error:#}; dmtcp_restart has --ckptdir for another directory")
        }
        _ => error,
    })
}

/// What is named, in another directory if that is; all that is there if nothing is named.
fn files(asked: &Asked, caller: &FsIds) -> anyhow::Result<Vec<PathBuf>> {
    let named = asked.rest.iter().map(PathBuf::from);
    let Some(dir) = &asked.restart_dir else {
        if asked.rest.is_empty() {
            bail!("no checkpoint was named: dmtcp_restart [OPTIONS] ckpt_*.dmtcp");
        }
        return Ok(named.collect());
    };
    if !asked.rest.is_empty() {
        return Ok(named.map(|file| dir.join(file.file_name().unwrap_or(file.as_os_str()))).collect());
    }
    let _as = caller.assume()?;
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: cannot list it", dir.display()))?;
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.starts_with(b"ckpt_") && path.extension() == Some("dmtcp".as_ref())
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_one).collect();
    found.sort_unstable();
    if found.is_empty() {
        bail!("{}: there is no checkpoint in it (ckpt_*.dmtcp)", dir.display());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn files_are_those_that_are_named_or_all_of_a_directory() {
        let base = tempfile::tempdir().unwrap();
        for name in ["ckpt_b.dmtcp", "ckpt_a.dmtcp", "x.dmtcp", "ckpt_c.txt"] {
            std::fs::write(base.path().join(name), "").unwrap();
        }
        let with = |dir: Option<&Path>, rest: &[&str]| {
            let rest = rest.iter().map(OsString::from).collect();
            let asked = Asked { restart_dir: dir.map(Into::into), rest, ..Asked::default() };
            files(&asked, &FsIds::current()).map_err(|error| error.to_string())
        };
        let in_base = |names: &[&str]| {
            let paths: Vec<PathBuf> = names.iter().map(|name| base.path().join(name)).collect();
            Ok(paths)
        };
        assert_eq!(with(None, &["a", "b/c"]), Ok(vec!["a".into(), "b/c".into()]));
        assert_eq!(with(Some(base.path()), &["/gone/ckpt_z.dmtcp"]), in_base(&["ckpt_z.dmtcp"]));
        assert_eq!(with(Some(base.path()), &[]), in_base(&["ckpt_a.dmtcp", "ckpt_b.dmtcp"]));
        assert!(with(None, &[]).unwrap_err().contains("no checkpoint was named"));
        let empty = tempfile::tempdir().unwrap();
        assert!(with(Some(empty.path()), &[]).unwrap_err().contains("there is no checkpoint in it"));
    }
}

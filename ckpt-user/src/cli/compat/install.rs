//! `ckptbpf compat`: the names of DMTCP, as links to this program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::options::PROGRAMS;
use crate::cli::{Status, print};

/// Have job scripts of DMTCP find this program: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command
///
/// `install` makes four symbolic links in DIR, which belongs before DMTCP's own in PATH. Files that are no such links are left alone.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "ckptbpf compat install DIR", after_help = crate::cli::examples!(
    "ckptbpf compat install ~/bin",
    "sudo ckptbpf compat install /usr/local/bin",
))]
pub struct Compat {
    /// What to do
    #[arg(value_name = "ACTION")]
    action: Action,
    /// Where the names go
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// What `compat` does.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    /// Make the links
    Install,
}

impl Compat {
    pub(in crate::cli) fn run(self) -> anyhow::Result<Status> {
        let Self { action: Action::Install, dir } = self;
        let own = fs::read_link("/proc/self/exe").context("cannot find out where this program is")?;
        if !own.is_file() {
            bail!("{}: this program has been removed or replaced; run it anew", own.display());
        }
        let made = install(&own, &dir)?;
        made.iter()
            .try_for_each(|link| print::print(&format!("{} -> {}\n", link.display(), own.display())))?;
        Ok(Status::DONE)
    }
}

/// Makes the links to `own`; where they are. Nothing is made where something else has one of the names.
fn install(own: &Path, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot make it", dir.display()))?;
    let links: Vec<PathBuf> = PROGRAMS.iter().map(|program| dir.join(program.name())).collect();
    if let Some(other) = links.iter().find(|link| !may_be_replaced(link, own)) {
        let shown = other.display();
        bail!("{shown}: this is no link to ckptbpf, and stays; name another directory, or remove it");
    }
    for link in &links {
        let fail = || format!("{}: cannot make it", link.display());
        let mut temporary = link.clone().into_os_string();
        temporary.push(".tmp");
        // Left by one that was killed.
        let _ = fs::remove_file(&temporary);
        symlink(own, &temporary).and_then(|()| fs::rename(&temporary, link)).with_context(fail)?;
    }
    Ok(links)
}

/// Whether nothing is there, or a link to this program or to another one of its name.
fn may_be_replaced(link: &Path, own: &Path) -> bool {
    match fs::read_link(link) {
        Ok(target) => target.file_name() == own.file_name(),
        Err(_) => fs::symlink_metadata(link).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_anew_and_nothing_else_is_touched() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("deep/bin");
        let own = Path::new("/opt/ckptbpf");
        assert_eq!(install(Path::new("/old/ckptbpf"), &dir).unwrap().len(), 4);
        let links = install(own, &dir).unwrap();
        assert!(links.iter().all(|link| fs::read_link(link).unwrap() == own));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 4);
        fs::remove_file(&links[0]).unwrap();
        fs::remove_file(&links[2]).unwrap();
        fs::write(&links[2], "theirs").unwrap();
        let error = install(own, &dir).unwrap_err().to_string();
        assert!(error.contains("dmtcp_coordinator: this is no link to ckptbpf"), "{error}");
        assert!(!links[0].exists() && fs::read_link(&links[0]).is_err());
        symlink("/usr/lib/dmtcp/bin/dmtcp_launch", &links[0]).unwrap();
        fs::remove_file(&links[2]).unwrap();
        assert!(install(own, &dir).is_err(), "DMTCP's own");
    }
}

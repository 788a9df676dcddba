//! What stays visible in the box where a private tmpfs would hide it: a clone of the repository may well be in /tmp.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// The folders that get a private tmpfs.
pub const PRIVATE: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// Folders that tests in the box use: the repository, the build's output, and the box's own directory.
pub fn visible(base: &Path) -> Vec<PathBuf> {
    let built = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_path_buf()));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
    let wanted = [repository, built, Some(base.to_path_buf())];
    wanted.into_iter().flatten().filter_map(|path| path.canonicalize().ok()).collect()
}

/// A folder held open while a tmpfs is mounted above it.
pub struct Kept {
    path: PathBuf,
    held: File,
}

/// Takes hold of those of `folders` that a private tmpfs would hide.
pub fn hold(folders: &[PathBuf]) -> Result<Vec<Kept>> {
    let hidden = |path: &&PathBuf| PRIVATE.iter().any(|private| path.starts_with(private));
    let open = |path: &PathBuf| {
        let held = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Kept { path: path.clone(), held })
    };
    folders.iter().filter(hidden).map(open).collect()
}

impl Kept {
    /// Makes the folder visible again at its old path; needs a /proc of this pid namespace.
    pub fn show(self) -> Result<()> {
        std::fs::create_dir_all(&self.path)?;
        let source = PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd()));
        mount(Some(&source), &self.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("showing {} in the box", self.path.display()))
    }
}

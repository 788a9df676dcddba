//! A group below which those of users are made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The core's own group, where it may not be in the one that hands on controllers (cgroups(7), "no internal processes").
pub const CORE: &str = "core";

/// How often a group is made anew that somebody has taken away meanwhile.
const TRIES: u32 = 3;

/// One of the second version has all limits, one of the first those of its hierarchy.
#[derive(Debug)]
pub struct Top {
    pub(super) folder: PathBuf,
    pub(super) limits: Vec<Limit>,
    /// The core has gone from here into [`CORE`].
    pub(super) is_left: bool,
}

/// What is written into a group that is made.
#[derive(Debug)]
pub struct Limit {
    pub controller: &'static str,
    pub file: &'static str,
    pub value: String,
    /// The same for what is swapped out, where the kernel has such a file.
    pub swap: Option<(&'static str, String)>,
}

/// The same error with what it is about.
pub fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Top {
    /// The core goes below, so that this group may hand on controllers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn move_to_core(&mut self) -> io::Result<()> {
        let core = self.folder.join(CORE);
        make(&core).and_then(|_| move_to(&core, std::process::id())).map_err(|error| at(&core, &error))?;
        self.is_left = true;
        Ok(())
    }

    /// Begins to (`+`), or ends it (`-`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn hand_on(&self, sign: char) -> io::Result<()> {
        let words: Vec<String> =
            self.limits.iter().map(|limit| format!("{sign}{}", limit.controller)).collect();
        let path = self.folder.join("cgroup.subtree_control");
        fs::write(&path, words.join(" ")).map_err(|error| at(&path, &error))
    }

    /// Whether groups can be made here, and have such limits.
    ///
    /// # Errors
    /// They cannot.
    pub fn try_out(&self, name: &str) -> io::Result<()> {
        let folder = self.folder.join(name);
        let mut tries = 0..TRIES;
        loop {
            let made = make(&folder).and_then(|_| self.limit(&folder));
            let _ = fs::remove_dir(&folder);
            match made {
                Err(error) if is_gone(&error) && tries.next().is_some() => {}
                made => return made.map_err(|error| at(&folder, &error)),
            }
        }
    }

    fn limit(&self, folder: &Path) -> io::Result<()> {
        for Limit { file, value, swap, .. } in &self.limits {
            fs::write(folder.join(file), value)?;
            if let Some((file, value)) = swap
                && folder.join(file).exists()
            {
                fs::write(folder.join(file), value)?;
            }
        }
        Ok(())
    }

    /// Takes a process into the group of this name, which is made if it is not there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn enter(&self, name: &str, process: u32) -> io::Result<()> {
        let folder = self.folder.join(name);
        let mut tries = 0..TRIES;
        loop {
            match self.entered(&folder, process) {
                Err(error) if is_gone(&error) && tries.next().is_some() => {}
                done => return done.map_err(|error| at(&folder, &error)),
            }
        }
    }

    fn entered(&self, folder: &Path, process: u32) -> io::Result<()> {
        if make(folder)? {
            self.limit(folder).inspect_err(|_| drop(fs::remove_dir(folder)))?;
        }
        move_to(folder, process)
    }

    /// Takes the group away, if nobody is in it. Whether it is gone.
    pub fn remove(&self, name: &str) -> bool {
        fs::remove_dir(self.folder.join(name)).map_or_else(|error| is_gone(&error), |()| true)
    }

    /// How many processes in the group of this name the kernel has killed for lack of memory.
    pub fn killed(&self, name: &str) -> u64 {
        let text = |file: &str| fs::read_to_string(self.folder.join(name).join(file)).ok();
        let text = text("memory.events").or_else(|| text("memory.oom_control")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or_default()
    }

    /// Groups that there are.
    pub fn names(&self) -> Vec<String> {
        let found = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let folders = found.filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|one| one.file_name().into_string().ok()).collect()
    }

    /// As it was before the daemon, if the daemon has changed it and nobody else is below.
    pub fn leave(&self) {
        let core = self.folder.join(CORE);
        let own = std::process::id();
        let is_alone = || {
            let inside = fs::read_to_string(core.join("cgroup.procs")).unwrap_or_default();
            inside.trim() == own.to_string() && self.names() == [CORE]
        };
        if self.is_left && is_alone() {
            // It cannot be in a group that hands on controllers; one that does not is not told to end it.
            let _ = self.hand_on('-');
            let _ = move_to(&self.folder, own).and_then(|()| fs::remove_dir(core));
        }
    }
}

/// Whether it was not there before.
fn make(folder: &Path) -> io::Result<bool> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

fn move_to(folder: &Path, process: u32) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), process.to_string())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

//! Where it happens: folders that go with us, and programs that end with us, however we end.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;

use super::case::Spare;
use super::machine;
use crate::cmd;

const SOURCE: &str = "tests/victims/bench.c";
/// Removes what it is given once its input ends, and a second later again where somebody was still writing to it.
const SWEEP: &str = r#"trap '' HUP INT TERM; cat >/dev/null; rm -rf -- "$@" || { sleep 1; rm -rf -- "$@"; }"#;

/// The folders, and the programs in use.
pub struct Stage {
    /// On the disk that is meant.
    folder: Swept,
    /// Where ckptbpf has its sockets, whose paths must be short.
    runtime: Swept,
    pub ckptbpf: PathBuf,
    /// The program that is measured.
    pub victim: PathBuf,
}

impl Stage {
    /// Makes folders, one of them in `place`, and compiles the program.
    ///
    /// # Errors
    /// A folder that cannot be made; what gcc says.
    pub fn set(place: &Path) -> Result<Self> {
        fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
        let place = fs::canonicalize(place).with_context(|| place.display().to_string())?;
        let id = std::process::id();
        let folder = Swept::make(place.join(format!("ckptbpf-bench-{id}")))?;
        let runtime = Swept::make(std::env::temp_dir().join(format!("ckptbpf-bench-{id}-run")))?;
        let victim = folder.path.join("bench");
        cmd::run(Command::new("gcc").args(["-O2", "-pthread", "-o"]).arg(&victim).arg(SOURCE))?;
        Ok(Self { folder, runtime, ckptbpf: cmd::built("ckptbpf")?, victim })
    }

    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// A folder for one job, which is removed with what is returned.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn room(&self, name: &str) -> Result<Room> {
        let path = self.folder.path.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Room { path })
    }

    /// A command that runs long: it has nothing of whoever called us, and is killed when we end.
    pub fn long(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = cmd::without_inherited();
        command.args(["setpriv", "--pdeathsig", "KILL"]).arg(program);
        self.in_place(command)
    }

    /// A command that is waited for.
    pub fn short(&self, program: impl AsRef<OsStr>) -> Command {
        self.in_place(Command::new(program))
    }

    fn in_place(&self, mut command: Command) -> Command {
        command.current_dir(self.folder()).env("XDG_RUNTIME_DIR", &self.runtime.path).stdin(Stdio::null());
        // Under sudo, too, the programs are root's.
        command.env_remove("SUDO_UID");
        command
    }

    /// What there is room for.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn spare(&self) -> Result<Spare> {
        let memory = machine::memory("MemAvailable")?;
        let disk = statvfs(self.folder()).with_context(|| self.folder().display().to_string())?;
        Ok(Spare { memory, disk: disk.blocks_available() * disk.fragment_size() })
    }
}

/// A job's folder.
pub struct Room {
    path: PathBuf,
}

impl Room {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

/// A folder that is removed when this is dropped: by a shell, whose input ends then, and after a kill -9 of us too.
struct Swept {
    path: PathBuf,
    shell: Child,
}

impl Swept {
    /// Makes it; an error if it is there.
    fn make(path: PathBuf) -> Result<Self> {
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("making {}", path.display()))?;
        let mut shell = Command::new("sh");
        shell.args(["-c", SWEEP, "sh"]).arg(&path).stdin(Stdio::piped());
        let shell = shell.spawn().context("starting a shell")?;
        Ok(Self { path, shell })
    }
}

impl Drop for Swept {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_who_holds_it_and_is_nobody_else_s() {
        let path = std::env::temp_dir().join(format!("ckptbpf-swept-{}", std::process::id()));
        let held = Swept::make(path.clone()).unwrap();
        fs::write(path.join("file"), "content").unwrap();
        assert!(Swept::make(path.clone()).is_err() && path.exists());
        drop(held);
        assert!(!path.exists());
    }
}

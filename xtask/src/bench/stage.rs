//! Where it happens: folders that go with us, and programs that end with us, however we end.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;

use super::case::Spare;
use super::machine;
use crate::cmd;

const SOURCE: &str = "tests/victims/bench.c";
/// Removes what it is given once its input ends, and once more what somebody was still writing to.
const SWEEP: &str = r#"trap '' HUP INT TERM; cat >/dev/null; rm -rf -- "$@" || { sleep 1; rm -rf -- "$@"; }"#;

/// The folders, and the programs in use.
pub struct Stage {
    /// On the disk that is meant.
    folder: PathBuf,
    /// Where ckptbpf has its sockets, whose paths must be short.
    runtime: PathBuf,
    pub ckptbpf: PathBuf,
    /// The program that is measured.
    pub victim: PathBuf,
    _janitor: Janitor,
}

impl Stage {
    /// Makes folders, one of them in `place`, and compiles the program.
    ///
    /// # Errors
    /// A folder that cannot be made; what gcc says.
    pub fn set(place: &Path) -> Result<Self> {
        let name = format!("ckptbpf-bench-{}", std::process::id());
        fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
        let place = fs::canonicalize(place).with_context(|| place.display().to_string())?;
        let (folder, runtime) = (place.join(&name), std::env::temp_dir().join(&name));
        let janitor = Janitor::of(&[&folder, &runtime])?;
        // They may be one.
        for made in [&folder, &runtime] {
            fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
        }
        let victim = folder.join("bench");
        cmd::run(Command::new("gcc").args(["-O2", "-pthread", "-o"]).arg(&victim).arg(SOURCE))?;
        Ok(Self { folder, runtime, ckptbpf: cmd::built("ckptbpf")?, victim, _janitor: janitor })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder for one job, which is removed with what is returned.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn room(&self, name: &str) -> Result<Room> {
        let path = self.folder.join(name);
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
        command.current_dir(&self.folder).env("XDG_RUNTIME_DIR", &self.runtime).stdin(Stdio::null());
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
        let disk = statvfs(&self.folder).with_context(|| self.folder.display().to_string())?;
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

/// A shell whose input ends when we do, by kill -9 too.
struct Janitor(Child);

impl Janitor {
    fn of(folders: &[&PathBuf]) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", SWEEP, "sh"]).args(folders).stdin(Stdio::piped());
        Ok(Self(shell.spawn().context("starting a shell")?))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

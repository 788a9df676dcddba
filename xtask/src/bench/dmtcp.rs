//! DMTCP: a library in the program, a coordinator beside it. Without gzip, which is its quickest way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::case::Case;
use super::contender::{Contender, Kind, Taken, make_durable, micros};
use super::stage::{Room, Stage};
use super::victim::Victim;
use crate::cmd::{self, Held};

const TO_LISTEN: Duration = Duration::from_secs(10);

/// A program under it.
pub struct Job<'s> {
    stage: &'s Stage,
    bin: PathBuf,
    port: String,
    // The coordinator ends after its last program.
    victim: Victim,
    _coordinator: Held,
    room: Room,
}

/// Where its programs are, in what it was installed to.
pub fn programs(installed: &Path) -> PathBuf {
    let bin = installed.join("bin");
    if bin.join("dmtcp_launch").is_file() { bin } else { installed.to_owned() }
}

/// The version of what is in `bin`.
///
/// # Errors
/// It cannot be run.
pub fn version(bin: &Path) -> Result<String> {
    let said = cmd::output(Command::new(bin.join("dmtcp_launch")).arg("--version"))?;
    Ok(said.lines().next().unwrap_or("DMTCP").trim().to_owned())
}

impl<'s> Job<'s> {
    /// Starts a coordinator, and a program under it.
    ///
    /// # Errors
    /// One of them cannot be started.
    pub fn start(stage: &'s Stage, bin: &Path, case: &Case) -> Result<Self> {
        let room = stage.room("dmtcp")?;
        fs::create_dir(room.images())?;
        let port_file = room.path().join("port");
        let mut coordinator = stage.long(bin.join("dmtcp_coordinator"));
        coordinator.args(["--quiet", "--exit-on-last", "--coord-port", "0", "--port-file"]).arg(&port_file);
        coordinator.arg("--tmpdir").arg(room.path());
        let coordinator = Held(coordinator.spawn().context("starting dmtcp_coordinator")?);
        let port = port_of(&port_file)?;
        let mut launch = stage.long(bin.join("dmtcp_launch"));
        launch.args(["--quiet", "--no-gzip", "--join-coordinator", "--coord-port", &port]);
        launch.arg("--ckptdir").arg(room.images()).arg("--tmpdir").arg(room.path());
        let victim = Victim::start(&mut launch, stage, case, &room)?;
        Ok(Self { stage, bin: bin.to_owned(), port, victim, _coordinator: coordinator, room })
    }
}

impl Contender for Job<'_> {
    fn victim(&mut self) -> &mut Victim {
        &mut self.victim
    }

    fn checkpoint(&mut self) -> Result<Option<Taken>> {
        let mut command = self.stage.short(self.bin.join("dmtcp_command"));
        let begun = Instant::now();
        cmd::output(command.args(["--coord-port", &self.port, "--bcheckpoint"]))?;
        let bytes_stored = make_durable(&self.room.images())?;
        let durable_us = micros(begun.elapsed());
        ensure!(bytes_stored > 0, "DMTCP has written no image");
        Ok(Some(Taken {
            kind: Kind::Full,
            durable_us,
            told_us: None,
            bytes_stored,
            pages: None,
            cpu_us: None,
        }))
    }

    fn forget(&mut self) -> Result<()> {
        let images = self.room.images();
        for entry in fs::read_dir(&images).with_context(|| images.display().to_string())? {
            let path = entry?.path();
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// The number in the file, once it is there.
fn port_of(file: &Path) -> Result<String> {
    let until = Instant::now() + TO_LISTEN;
    loop {
        let written = fs::read_to_string(file).unwrap_or_default();
        if written.trim().parse::<u16>().is_ok_and(|port| port > 0) {
            return Ok(written.trim().to_owned());
        }
        ensure!(Instant::now() < until, "dmtcp_coordinator does not listen after {} s", TO_LISTEN.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

//! ckptbpf, by its command line alone.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::case::Case;
use super::contender::{Contender, Kind, Taken, micros};
use super::stage::{Room, Stage};
use super::usage::{self, Usage};
use super::victim::Victim;
use crate::cmd;

const TO_BE_KNOWN: Duration = Duration::from_secs(30);

/// The line of `checkpoint --json`, as far as it matters.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Done {
    kind: Kind,
    freeze_us: u64,
    pages: u64,
    bytes_stored: u64,
}

/// A job.
pub struct Job<'s> {
    stage: &'s Stage,
    victim: Victim,
    room: Room,
}

impl<'s> Job<'s> {
    /// Launches a program.
    ///
    /// # Errors
    /// It cannot be launched.
    pub fn start(stage: &'s Stage, case: &Case) -> Result<Self> {
        let room = stage.room("ckptbpf")?;
        let mut launch = stage.long(&stage.ckptbpf);
        launch.args(["launch", "--dir"]).arg(room.images()).arg("--");
        let victim = Victim::start(&mut launch, stage, case, &room)?;
        let mut job = Self { stage, victim, room };
        let program = job.wait_until_known()?;
        job.victim.set_program(program);
        Ok(job)
    }

    fn images(&self) -> PathBuf {
        self.room.images()
    }

    /// What `ckptbpf VERB --json DIR` prints.
    fn ask(&self, verb: &str) -> Result<String> {
        let mut command = self.stage.short(&self.stage.ckptbpf);
        cmd::output(command.args([verb, "--json"]).arg(self.images()))
    }

    /// The program's process id, once the job can be asked.
    fn wait_until_known(&self) -> Result<i32> {
        let until = Instant::now() + TO_BE_KNOWN;
        loop {
            let known = self.ask("status").map(|status| supervised(&status));
            if let Ok(Some(program)) = known {
                return Ok(program);
            }
            ensure!(Instant::now() < until, "ckptbpf status does not know the job: {known:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn usage(&self) -> Usage {
        let supervisor = i32::try_from(self.victim.started()).unwrap_or_default();
        usage::of(supervisor, self.victim.program())
    }

    /// Of the supervisor, and of the commands that have asked it.
    fn cpu_us(&self) -> u64 {
        self.usage().cpu_us + usage::of_waited()
    }
}

impl Contender for Job<'_> {
    fn victim(&mut self) -> &mut Victim {
        &mut self.victim
    }

    fn checkpoint(&mut self) -> Result<Option<Taken>> {
        let cpu_before = self.cpu_us();
        let begun = Instant::now();
        let said = self.ask("checkpoint")?;
        let durable_us = micros(begun.elapsed());
        let cpu_us = self.cpu_us().saturating_sub(cpu_before);
        let done: Done = serde_json::from_str(&said).with_context(|| format!("ckptbpf says {said:?}"))?;
        Ok(Some(Taken {
            kind: done.kind,
            durable_us,
            told_us: Some(done.freeze_us),
            bytes_stored: done.bytes_stored,
            pages: Some(done.pages),
            cpu_us: Some(cpu_us),
        }))
    }

    fn peak_kib(&self) -> Option<u64> {
        Some(self.usage().peak_kib)
    }
}

/// The program's process id in `status --json DIR`, once a supervisor answers for it.
fn supervised(status: &str) -> Option<i32> {
    let status: Value = serde_json::from_str(status).ok()?;
    let program = status["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())?;
    (status["supervised"] == true && program > 1).then_some(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_prints_is_understood() {
        let said = r#"{"ok":true,"id":2,"parent":1,"kind":"delta","freeze_us":900,"elapsed_us":5000,"pages":281,
            "bytes_stored":1153434,"killed":false}"#;
        let done: Done = serde_json::from_str(said).unwrap();
        let expected = Done { kind: Kind::Delta, freeze_us: 900, pages: 281, bytes_stored: 1_153_434 };
        assert_eq!(done, expected);
        assert_eq!(supervised(r#"{"pid": 7, "supervised": true}"#), Some(7));
        for unknown in [r#"{"pid": 7, "supervised": false}"#, r#"{"supervised": true}"#, "", "[]"] {
            assert_eq!(supervised(unknown), None, "{unknown}");
        }
    }
}

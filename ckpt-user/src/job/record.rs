//! `DIR/job.json`: whose directory this is, where its job runs, and the options it was given.
//!
//! What the record says of a job is compared with what this machine knows; where this machine cannot know
//! (another host), the answer is "cannot be known", never a guess.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::options::{Codec, JobOptions};
use super::process::ProcessId;
use super::slurm::place::SlurmRun;
use crate::machine;

/// A record larger than this is not one of ours.
pub const RECORD_LIMIT: u64 = 1 << 20;

/// The machine and boot that ckptbpf runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// Host name.
    pub host: String,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// /etc/machine-id, where there is one: tells a reboot of this machine from another machine of the same name.
    pub machine: Option<String>,
}

impl Here {
    /// Of this process.
    pub fn current() -> Self {
        let host =
            nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let boot_id = machine::boot_id().to_owned();
        let machine = Some(machine::id()).filter(|id| !id.is_empty()).map(str::to_owned);
        Self { host, boot_id, machine }
    }
}

/// Options that a restart uses again unless they are given anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedOptions {
    /// Time between checkpoints in microseconds; none or 0: on request only.
    #[serde(default)]
    pub interval_us: Option<u64>,
    /// `--keep`.
    #[serde(default)]
    pub keep: Option<usize>,
    /// `--compress`.
    #[serde(default)]
    pub compress: Option<Codec>,
    /// `--ckpt-signal`, by number.
    #[serde(default)]
    pub ckpt_signal: Option<i32>,
    /// See [`JobOptions::dmtcp`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dmtcp: Option<String>,
}

impl RecordedOptions {
    /// What is given now, else what an earlier run recorded.
    pub fn merged(given: &JobOptions, recorded: Option<&Self>) -> Self {
        let old = recorded.cloned().unwrap_or_default();
        let given_us = given.interval.map(|interval| u64::try_from(interval.as_micros()).unwrap_or(u64::MAX));
        Self {
            interval_us: given_us.or(old.interval_us),
            keep: given.keep.or(old.keep),
            compress: given.compress.or(old.compress),
            ckpt_signal: given.ckpt_signal.or(old.ckpt_signal),
            dmtcp: given.dmtcp.clone().or(old.dmtcp),
        }
    }

    /// Time between checkpoints; none: on request only.
    pub fn interval(&self) -> Option<Duration> {
        self.interval_us.filter(|us| *us > 0).map(Duration::from_micros)
    }
}

/// What the last writer left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Identity of the job: stays through restarts.
    pub job: String,
    /// Counts writers: each launch, restart or attach is the next one.
    pub epoch: u64,
    /// Where the writer ran.
    #[serde(flatten)]
    pub here: Here,
    /// The supervisor.
    pub supervisor: ProcessId,
    /// First process of the program; none until it was started.
    #[serde(flatten)]
    pub program: Option<ProcessId>,
    /// What a restart has made beside it: no checkpoint may name them yet.
    #[serde(default)]
    pub restarted: Vec<ProcessId>,
    /// Nobody can be asked of it yet.
    #[serde(default)]
    pub starting: bool,
    /// Exit status that the job ended with; none while it runs (or died together with its supervisor).
    #[serde(default)]
    pub ended: Option<u8>,
    /// It was ended with its last checkpoint, whatever status a program may have by itself.
    #[serde(default)]
    pub checkpointed: bool,
    /// The Slurm job that it ran in.
    #[serde(default)]
    pub slurm: Option<SlurmRun>,
    /// Control socket.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Options to use again.
    pub options: RecordedOptions,
    /// The program and its arguments, for people to read.
    pub argv: Vec<String>,
}

impl JobRecord {
    /// Program and arguments as people read them; bytes that are no UTF-8 are replaced.
    pub fn readable(program: &[OsString]) -> Vec<String> {
        program.iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }
}

/// What this machine knows about the job of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It ended, and said so; or it died, and this machine knows.
    Over,
    /// This machine has been started anew since: nothing of that job can be left.
    Rebooted,
    /// Its first process runs here.
    Runs(i32),
    /// It was on a machine that cannot be asked.
    Elsewhere,
}

/// Compares a record with the machine; `runs` tells whether a process of this machine still runs.
pub fn standing(record: &JobRecord, here: &Here, runs: impl Fn(ProcessId) -> bool) -> Standing {
    let there = &record.here;
    if record.ended.is_some() {
        Standing::Over
    } else if there.host == here.host && there.boot_id == here.boot_id {
        match record.program {
            Some(program) if runs(program) => Standing::Runs(program.pid),
            _ => Standing::Over,
        }
    } else if there.host == here.host && there.machine.is_some() && there.machine == here.machine {
        Standing::Rebooted
    } else {
        Standing::Elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(host: &str, boot: &str, machine: Option<&str>) -> Here {
        Here { host: host.into(), boot_id: boot.into(), machine: machine.map(Into::into) }
    }

    fn record(at: Here) -> JobRecord {
        let program = ProcessId { pid: 42, start_time: 7 };
        JobRecord {
            job: "j".into(),
            epoch: 3,
            here: at,
            supervisor: ProcessId { pid: 41, start_time: 6 },
            program: Some(program),
            restarted: Vec::new(),
            ended: None,
            checkpointed: false,
            slurm: None,
            starting: false,
            socket: None,
            options: RecordedOptions::default(),
            argv: vec!["./count".into()],
        }
    }

    #[test]
    fn a_job_is_running_over_or_unknown_but_never_guessed() {
        let now = here("a", "b1", Some("m"));
        let ask = |at, runs: bool| standing(&record(at), &now, |_| runs);
        assert_eq!(ask(now.clone(), true), Standing::Runs(42));
        assert_eq!(ask(now.clone(), false), Standing::Over);
        assert_eq!(ask(here("a", "b0", Some("m")), true), Standing::Rebooted);
        assert_eq!(ask(here("a", "b0", Some("other")), true), Standing::Elsewhere);
        assert_eq!(ask(here("z", "b1", Some("m")), true), Standing::Elsewhere);
        let no_machine = here("a", "b1", None);
        assert_eq!(standing(&record(here("a", "b0", None)), &no_machine, |_| true), Standing::Elsewhere);
        let ended = JobRecord { ended: Some(0), ..record(here("z", "b9", None)) };
        assert_eq!(standing(&ended, &now, |_| true), Standing::Over);
    }

    #[test]
    fn the_file_has_the_fields_of_the_contract() {
        let json = serde_json::to_value(record(here("a", "b", None))).unwrap();
        for field in ["host", "boot_id", "pid", "start_time", "options", "epoch", "socket", "job"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        let back: JobRecord = serde_json::from_value(json).unwrap();
        assert_eq!(back, record(here("a", "b", None)));
        let not_started = JobRecord { program: None, ..record(here("a", "b", None)) };
        let back: JobRecord = serde_json::from_str(&serde_json::to_string(&not_started).unwrap()).unwrap();
        assert_eq!(back.program, None);
    }

    #[test]
    fn recorded_options_hold_until_given_anew() {
        let old = RecordedOptions { interval_us: Some(5_000_000), keep: Some(2), ..Default::default() };
        let anew = JobOptions { interval: Some(Duration::ZERO), ckpt_signal: Some(10), ..Default::default() };
        let merged = RecordedOptions::merged(&anew, Some(&old));
        assert_eq!((merged.interval(), merged.keep, merged.ckpt_signal), (None, Some(2), Some(10)));
        let again = RecordedOptions::merged(&JobOptions::default(), Some(&old));
        assert_eq!(again.interval(), Some(Duration::from_secs(5)));
    }
}

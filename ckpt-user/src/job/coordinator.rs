//! What stands for DMTCP's coordinator: a file in the user's runtime directory that says what jobs begin with. No process, no port.
//!
//! A coordinator goes by the number of the port that it would have, and within a Slurm job by that: `dmtcp-7779.state`,
//! `dmtcp-7779.41.state`. Jobs bear the name in the registry, where they are found by it. The file holds until the machine is
//! started anew, until the process that made it is gone if it was one in the foreground, or until it is removed.

use super::process::ProcessId;
use super::registry::{self, Live};
use super::runtime_dir::{RuntimeDir, RuntimeDirError};
use crate::machine;
use crate::sys::ids::FsIds;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Where DMTCP's coordinator listens if nobody says otherwise (DEFAULT_PORT of its source).
pub const DEFAULT_PORT: u16 = 7779;

/// A coordinator's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// A number, and no port: nobody listens.
    pub port: u16,
    /// `SLURM_JOB_ID`, in whose job it is.
    pub slurm_job: Option<u32>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slurm_job {
            Some(job) => write!(f, "{}.{job}", self.port),
            None => write!(f, "{}", self.port),
        }
    }
}

impl Name {
    /// Of text as it is shown.
    pub fn parse(text: &str) -> Option<Self> {
        let (port, job) = text.split_once('.').map_or((text, None), |(port, job)| (port, Some(job)));
        let name = Self { port: port.parse().ok()?, slurm_job: job.map(str::parse).transpose().ok()? };
        // One name, one way to write it.
        (name.to_string() == text).then_some(name)
    }

    /// Whether jobs of `other` are meant by this one: who is in no Slurm job means those of all.
    fn covers(self, other: Self) -> bool {
        self.port == other.port && (self.slurm_job.is_none() || self == other)
    }

    fn file(self) -> String {
        format!("dmtcp-{self}.state")
    }
}

/// What its jobs begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The boot that it was made in (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// A coordinator in the foreground.
    #[serde(default)]
    pub process: Option<ProcessId>,
    /// Seconds between checkpoints; 0 is off.
    #[serde(default)]
    pub interval_s: Option<u64>,
    /// The next checkpoint of a job is also its end.
    #[serde(default)]
    pub exit_after_ckpt: bool,
    /// It goes with its last job.
    #[serde(default)]
    pub exit_on_last: bool,
}

impl State {
    /// Of a file's bytes, if there is still such a coordinator.
    pub fn parse(bytes: &[u8], boot_id: &str, runs: impl Fn(ProcessId) -> bool) -> Option<Self> {
        let state: Self = serde_json::from_slice(bytes).ok()?;
        (state.boot_id == boot_id && state.process.is_none_or(runs)).then_some(state)
    }
}

/// The state of a coordinator of `caller`'s. What is left of one that is gone is removed.
pub fn load(name: Name, caller: &FsIds) -> Option<State> {
    let file = name.file();
    for place in own_places(caller) {
        let Ok(bytes) = place.read(&file) else { continue };
        match State::parse(&bytes, machine::boot_id(), ProcessId::runs) {
            None => place.remove(&file),
            found => return found,
        }
    }
    None
}

/// Writes it; the directory in which it is.
///
/// # Errors
/// There is no runtime directory, or it cannot be written.
pub fn store(name: Name, state: &State, caller: &FsIds) -> Result<PathBuf, RuntimeDirError> {
    let (file, place) = (name.file(), RuntimeDir::for_user(caller)?);
    let state = State { boot_id: machine::boot_id().to_owned(), ..state.clone() };
    let text = serde_json::to_vec(&state).map_err(|error| place.io(&file, "write it", error))?;
    place.write(&file, &text)?;
    let others = own_places(caller).into_iter().filter(|other| other.path() != place.path());
    others.for_each(|other| other.remove(&file));
    Ok(place.path().to_owned())
}

/// There is none any more.
pub fn remove(name: Name, caller: &FsIds) {
    own_places(caller).iter().for_each(|place| place.remove(&name.file()));
}

/// The live jobs of a coordinator of `caller`'s.
pub fn jobs(name: Name, caller: &FsIds) -> Vec<Live> {
    let of = |job: &Live| job.entry.dmtcp.as_deref().and_then(Name::parse);
    let mut jobs = registry::live(&own_places(caller));
    jobs.retain(|job| of(job).is_some_and(|other| name.covers(other)));
    jobs
}

/// A job has ended, by its checkpoint or otherwise: a coordinator that was there for that alone is gone.
pub fn has_ended(name: Name, by_checkpoint: bool, caller: &FsIds) {
    let Some(state) = load(name, caller) else { return };
    let was_its_end = by_checkpoint && state.exit_after_ckpt;
    if was_its_end || (state.exit_on_last && jobs(name, caller).is_empty()) {
        remove(name, caller);
    }
}

/// Numbers that are given to who wants any.
const ANY: std::ops::Range<u16> = 20_000..60_000;

/// A name that no coordinator and no job of `caller`'s has; `random` decides which.
pub fn free(slurm_job: Option<u32>, random: u64, caller: &FsIds) -> Option<Name> {
    let count = u64::from(ANY.end - ANY.start);
    let at = |step: u64| u16::try_from(random.wrapping_add(step) % count).ok();
    let mut names = (0..count).filter_map(|step| Some(Name { port: ANY.start + at(step)?, slurm_job }));
    let is_free = |name: &Name| load(*name, caller).is_none() && jobs(*name, caller).is_empty();
    names.find(is_free)
}

/// The runtime directories that are `caller`'s; root sees everybody's.
fn own_places(caller: &FsIds) -> Vec<RuntimeDir> {
    let mut places = RuntimeDir::visible();
    places.retain(|place| place.ids().uid == caller.uid);
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_a_port_and_a_slurm_job() {
        let name = Name { port: 7779, slurm_job: Some(41) };
        assert_eq!((name.to_string().as_str(), Name::parse("7779.41")), ("7779.41", Some(name)));
        assert_eq!(Name::parse("7779"), Some(Name { slurm_job: None, ..name }));
        for text in ["", "x", "7779.", ".41", "07779", "+1", "70000", "1.2.3", "../1"] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn who_is_in_a_slurm_job_means_its_own_jobs_alone() {
        let of = |slurm_job| Name { port: 1, slurm_job };
        assert!(of(None).covers(of(Some(4))) && of(None).covers(of(None)) && of(Some(4)).covers(of(Some(4))));
        assert!(!of(Some(4)).covers(of(None)) && !of(Some(4)).covers(of(Some(5))));
        assert!(!of(None).covers(Name { port: 2, slurm_job: None }));
    }

    #[test]
    fn a_state_holds_for_its_boot_and_while_its_process_runs() {
        let me = ProcessId::current().unwrap();
        let state = State { boot_id: "b".into(), process: Some(me), exit_on_last: true, ..State::default() };
        let text = serde_json::to_vec(&state).unwrap();
        assert_eq!(State::parse(&text, "b", |one| one == me), Some(state));
        assert_eq!(State::parse(&text, "b", |_| false), None);
        assert_eq!(State::parse(&text, "c", |_| true), None);
        let bare = State { boot_id: "b".into(), ..State::default() };
        assert_eq!(State::parse(br#"{"boot_id":"b"}"#, "b", |_| false), Some(bare));
    }

    proptest! {
        #[test]
        fn names_come_back(port in any::<u16>(), slurm_job in any::<Option<u32>>()) {
            let name = Name { port, slurm_job };
            prop_assert_eq!(Name::parse(&name.to_string()), Some(name));
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = State::parse(&bytes, "b", |_| true);
        }
    }
}

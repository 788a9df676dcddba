//! The live jobs of this machine: one entry each in the runtime directory, beside its control socket.
//!
//! An entry outlives a supervisor that is killed. It stays while the program runs (then `status` says that nobody
//! supervises it, and `attach` can), and is cleared by the next reader once both are gone.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::control::{self, Control, ControlError, JobStatus, Reply, Request};
use super::identity::fs_ids_of;
use super::process::{ProcessId, parent};
use super::runtime_dir::{RuntimeDir, RuntimeDirError};

/// A live job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Identity of the job.
    pub job: String,
    /// Its directory, from the root.
    pub dir: PathBuf,
    /// First process of the program.
    #[serde(flatten)]
    pub program: ProcessId,
    /// The supervisor.
    pub supervisor: ProcessId,
    /// Program and arguments, readable.
    pub argv: Vec<String>,
    /// The user whose program it is.
    pub uid: u32,
    /// Control socket.
    pub socket: PathBuf,
    /// The ckptbpf that was started, where the supervisor is its worker.
    #[serde(default)]
    pub front: Option<ProcessId>,
    /// See [`super::options::JobOptions::dmtcp`].
    #[serde(default)]
    pub dmtcp: Option<String>,
}

static FRONT: OnceLock<ProcessId> = OnceLock::new();

/// Notes whose worker this process is; the first call counts.
pub fn note_front(front: ProcessId) {
    FRONT.get_or_init(|| front);
}

/// What was noted.
pub fn front() -> Option<ProcessId> {
    FRONT.get().copied()
}

/// A job's presence in the registry; taken back when dropped.
#[derive(Debug)]
pub struct Registration {
    runtime: Arc<RuntimeDir>,
    name: String,
}

/// The name that a supervisor's socket and entry go by.
pub fn name_of(supervisor: ProcessId) -> String {
    format!("{}-{}", supervisor.pid, supervisor.start_time)
}

impl Registration {
    /// Makes the job known. The socket is bound before: see [`Registration::with_control`].
    pub fn new(runtime: &Arc<RuntimeDir>, entry: &Entry) -> Result<Self, RuntimeDirError> {
        let name = format!("{}.json", name_of(entry.supervisor));
        let text = serde_json::to_vec(entry).map_err(|error| runtime.io(&name, "write it", error))?;
        runtime.write(&name, &text)?;
        Ok(Self { runtime: runtime.clone(), name })
    }

    /// The control socket of this process, under the name that its entry will have.
    pub fn with_control(runtime: &Arc<RuntimeDir>, supervisor: ProcessId) -> Result<Control, ControlError> {
        Control::bind(runtime, &format!("{}.sock", name_of(supervisor)))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.runtime.remove(&self.name);
    }
}

/// A live job and whether ckptbpf still supervises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Its entry.
    pub entry: Entry,
    /// Whether the supervisor runs.
    pub supervised: bool,
}

impl Live {
    /// Asks the supervisor, as its user where that is what opens the way to the socket.
    pub fn ask(&self, request: Request) -> Result<Reply, ControlError> {
        // An ordinary user has no other ids to take, and may try with its own.
        let _as = fs_ids_of(self.entry.uid).and_then(|ids| ids.assume().ok());
        control::request(&self.entry.socket, &request, Some(self.entry.supervisor.pid))
    }

    /// What the supervisor says of the job; none without one.
    pub fn status(&self) -> Result<Option<JobStatus>, ControlError> {
        if !self.supervised {
            return Ok(None);
        }
        match self.ask(Request::Status)? {
            Reply::Status(status) => Ok(Some(status)),
            _ => Err(ControlError::Refused("the supervisor answered something else".into())),
        }
    }
}

/// Which job is meant on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Any process of the job's tree, or its supervisor.
    Pid(i32),
    /// Its directory.
    Dir(PathBuf),
}

impl Target {
    /// Digits are a pid; write `./123` for a directory of that name.
    pub fn parse(text: &std::ffi::OsStr) -> Self {
        let pid = text.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        pid.and_then(|text| text.parse().ok())
            .filter(|pid| *pid > 0)
            .map_or_else(|| Self::Dir(text.into()), Self::Pid)
    }
}

/// The live jobs in the given runtime directories; entries of dead ones are removed, with their sockets.
pub fn live(places: &[RuntimeDir]) -> Vec<Live> {
    let mut found = Vec::new();
    for place in places {
        found.extend(living(place).into_iter().filter(|job| is_credible(&job.entry, place)));
    }
    // A job that was attached again has the entry of its dead supervisor too: the live one speaks for it.
    found.sort_by_key(|job| (job.entry.program.pid, !job.supervised));
    found.dedup_by_key(|job| job.entry.program);
    found
}

/// Removes entries of dead jobs, with their sockets. Nobody is asked, and no path that an entry names is gone to: that may take as
/// long as somebody likes.
pub fn clear(places: &[RuntimeDir]) {
    places.iter().for_each(|place| drop(living(place)));
}

/// What entries of one runtime directory say that live; those of dead jobs are removed, with their sockets.
fn living(place: &RuntimeDir) -> Vec<Live> {
    let mut found = Vec::new();
    for name in place.names() {
        let Some(stem) = name.strip_suffix(".json") else { continue };
        let Some(entry) = place.read(&name).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok())
        else {
            continue;
        };
        // The name says whose entry it is; one that claims another supervisor's is not believed.
        if name_of(entry.supervisor) != stem || entry.uid != place.ids().uid {
            continue;
        }
        let is_worker = entry.front.is_some_and(ProcessId::runs);
        let supervised = entry.supervisor.runs() || (is_worker && entry.supervisor.is_hidden());
        if supervised || entry.program.runs() {
            let socket = place.path().join(format!("{stem}.sock"));
            found.push(Live { entry: Entry { socket, ..entry }, supervised });
        } else {
            place.remove(&name);
            place.remove(&format!("{stem}.sock"));
        }
    }
    found
}

/// Whether what an entry speaks of is its user's: a program, and a directory. Root's programs may be anybody's, and so may be what
/// a ckptbpf of root's supervises, which is the one that is asked ([`Live::ask`]).
fn is_credible(entry: &Entry, place: &RuntimeDir) -> bool {
    use std::os::unix::fs::MetadataExt;
    let uid = entry.uid;
    let supervisor = entry.supervisor.runs().then(|| entry.supervisor.real_uid()).flatten();
    if uid == 0 || (supervisor == Some(0) && entry.supervisor.is_ckptbpf()) {
        return true;
    }
    // As they see it, who need not let anybody else in.
    let found = place.assume().and_then(|_as| std::fs::metadata(&entry.dir));
    let has_dir = match found {
        Ok(found) => [uid, 0].contains(&found.uid()),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    let is_theirs = |process: ProcessId| !process.runs() || process.real_uid() == Some(uid);
    has_dir && is_theirs(entry.program) && is_theirs(entry.supervisor)
}

/// The live job that is meant, if there is one.
pub fn find(jobs: &[Live], target: &Target) -> Option<Live> {
    match target {
        Target::Dir(dir) => {
            // Root that may not enter its user's closed home knows the directory by name only.
            let dir = std::fs::canonicalize(dir).or_else(|_| std::path::absolute(dir)).ok()?;
            jobs.iter().find(|job| same_dir(&job.entry.dir, &dir)).cloned()
        }
        Target::Pid(pid) => {
            let mut at = Some(*pid);
            // A tree deeper than this is a loop in what /proc told while it changed.
            for _ in 0..4096 {
                let pid = at?;
                let is = |job: &&Live| {
                    let ours = [Some(job.entry.supervisor), job.entry.front];
                    let is_ours = ours.into_iter().flatten().any(|one| one.pid == pid);
                    job.entry.program.pid == pid || (job.supervised && is_ours)
                };
                if let Some(job) = jobs.iter().find(is) {
                    return Some(job.clone());
                }
                at = parent(pid);
            }
            None
        }
    }
}

fn same_dir(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    a == b || id(a).is_some_and(|a| Some(a) == id(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ids::FsIds;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    fn runtime() -> (tempfile::TempDir, Arc<RuntimeDir>) {
        let session = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::in_session(session.path(), &FsIds::current()).unwrap().unwrap();
        (session, Arc::new(runtime))
    }

    fn places(session: &tempfile::TempDir) -> [RuntimeDir; 1] {
        [RuntimeDir::existing(&session.path().join("ckptbpf"), &FsIds::current()).unwrap()]
    }

    fn entry(program: ProcessId, supervisor: ProcessId, dir: &Path) -> Entry {
        let uid = FsIds::current().uid;
        let argv = vec!["./count".into()];
        let (job, dir, socket) = ("j".into(), dir.into(), "/x".into());
        Entry { job, dir, program, supervisor, argv, uid, socket, front: None, dmtcp: None }
    }

    #[test]
    fn a_live_job_is_found_by_directory_and_by_any_pid_of_its_tree() {
        let (session, runtime) = runtime();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let program = ProcessId::of(child.id() as i32).unwrap();
        let supervisor = ProcessId::current().unwrap();
        let registration = Registration::new(&runtime, &entry(program, supervisor, session.path())).unwrap();
        let jobs = live(&places(&session));
        assert_eq!(jobs.len(), 1);
        assert!(jobs[0].supervised);
        for pid in [program.pid, supervisor.pid] {
            assert!(find(&jobs, &Target::Pid(pid)).is_some());
        }
        assert!(find(&jobs, &Target::Pid(1)).is_none());
        assert!(find(&jobs, &Target::Dir(session.path().join("."))).is_some());
        assert!(find(&jobs, &Target::Dir("/".into())).is_none());
        drop(registration);
        assert!(live(&places(&session)).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_entry_stays_while_the_program_runs_and_is_cleared_afterwards() {
        let (session, runtime) = runtime();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let program = ProcessId::of(child.id() as i32).unwrap();
        let dead = ProcessId { pid: 1, start_time: u64::MAX };
        std::mem::forget(Registration::new(&runtime, &entry(program, dead, session.path())).unwrap());
        runtime.write(&format!("{}.sock", name_of(dead)), b"").unwrap();
        let jobs = live(&places(&session));
        assert!(!jobs[0].supervised);
        assert!(jobs[0].status().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(live(&places(&session)).is_empty());
        assert!(runtime.names().is_empty(), "{:?}", runtime.names());
    }

    #[test]
    fn what_is_not_an_entry_is_left_alone() {
        let (session, runtime) = runtime();
        runtime.write("1-2.json", b"garbage").unwrap();
        let other = entry(ProcessId::current().unwrap(), ProcessId::current().unwrap(), session.path());
        runtime.write("1-3.json", &serde_json::to_vec(&other).unwrap()).unwrap();
        assert!(live(&places(&session)).is_empty());
        assert_eq!(runtime.names().len(), 2);
    }

    #[test]
    fn an_entry_that_speaks_of_somebody_else_s_program_or_directory_is_not_believed() {
        use std::os::unix::fs::{PermissionsExt, chown};
        const UID: u32 = 7;
        if crate::skipped::without_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let [at, theirs, roots, third] =
            ["ckptbpf", "theirs", "roots", "third"].map(|name| base.path().join(name));
        for path in [&at, &theirs, &roots, &third] {
            std::fs::create_dir(path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        [&at, &theirs].into_iter().for_each(|path| chown(path, Some(UID), Some(UID)).unwrap());
        chown(&third, Some(UID + 1), None).unwrap();
        let place = [RuntimeDir::existing(&at, &FsIds::current()).unwrap()];
        let mut own = Command::new("sleep").arg("60").spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").uid(UID).gid(UID).spawn().unwrap();
        let [own_id, other_id] = [&own, &other].map(|child| ProcessId::of(child.id() as i32).unwrap());
        let says = |program: ProcessId, supervisor: ProcessId, dir: &Path| {
            let entry = Entry { uid: UID, ..entry(program, supervisor, dir) };
            let text = serde_json::to_vec(&entry).unwrap();
            let name = format!("{}.json", name_of(supervisor));
            place[0].write(&name, &text).unwrap();
            let is_believed = !live(&place).is_empty();
            place[0].remove(&name);
            is_believed
        };
        let is_believed = |program: ProcessId, dir: &Path| says(program, other_id, dir);
        assert!(is_believed(other_id, &theirs) && is_believed(other_id, &roots));
        assert!(!is_believed(own_id, &theirs));
        assert!(!says(other_id, own_id, &theirs), "root's, and no ckptbpf");
        assert!(says(other_id, ProcessId::current().unwrap(), &third), "supervised by root");
        assert!(!is_believed(other_id, &third));
        assert!(!is_believed(other_id, &roots.join("below")), "they cannot look there");
        for child in [&mut own, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn digits_are_a_pid_and_all_else_a_directory() {
        assert_eq!(Target::parse("12".as_ref()), Target::Pid(12));
        for dir in ["./12", "0", "99999999999", "-3", "", "ckpt_x"] {
            assert_eq!(Target::parse(dir.as_ref()), Target::Dir(dir.into()), "{dir}");
        }
    }
}

//! `ckptbpf checkpoint`: ask the job's supervisor, or, where nobody supervises, take one full checkpoint.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::control::{CheckpointDone, ControlError, Reply, Request};
use super::directory::JobDir;
use super::options::CheckpointOptions;
use super::record::Here;
use super::registry::{Live, Target, find, live};
use super::runtime_dir::RuntimeDir;
use crate::sys::ids::FsIds;

/// Who takes the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taker {
    /// The job's supervisor.
    Supervisor(Live),
    /// This process, once: nobody supervises the program.
    Once(CheckpointOptions),
}

/// Why nobody can.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No job there.
    #[error(
        "no running job writes {0} (one whose restart is under way answers once its program runs); ckptbpf status \
         shows which do (root sees everybody's)"
    )]
    NoJob(PathBuf),
    /// `-d` makes no sense.
    #[error("the job writes to {0}, and -d is for a PID that nobody supervises; leave it away")]
    OtherDir(PathBuf),
    /// There is a program, and nobody to ask.
    #[error(
        "the ckptbpf of process {pid} was killed, and the program runs without: have it supervised again (ckptbpf attach \
         -d {dir} {pid}), or end it yourself"
    )]
    Unsupervised {
        /// The program's first process.
        pid: i32,
        /// The job's directory.
        dir: String,
    },
    /// Talking to the supervisor.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The live jobs, that of `target` among them if it is being started: its program may have said something before ckptbpf can
/// be asked. A restart may take longer than this waits.
pub fn jobs(target: &Target) -> Vec<Live> {
    const PATIENCE: Duration = Duration::from_secs(3);
    const PAUSE: Duration = Duration::from_millis(10);
    let begin = Instant::now();
    loop {
        // First: one that is started meanwhile is among the jobs.
        let is_starting = matches!(target, Target::Dir(dir) if is_starting(dir));
        let jobs = live(&RuntimeDir::visible());
        let is_there = find(&jobs, target).is_some_and(|job| job.supervised);
        if is_there || !is_starting || begin.elapsed() > PATIENCE {
            return jobs;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether a supervisor of this machine has taken the directory, and cannot be asked yet.
fn is_starting(dir: &Path) -> bool {
    let record = JobDir::open(dir, &FsIds::current()).and_then(|dir| dir.read_record());
    record.ok().flatten().is_some_and(|record| {
        let is_unknown = record.starting && record.ended.is_none();
        // A worker may be hidden from the program; that it is another process by now costs the wait.
        let supervisor = record.supervisor;
        is_unknown && record.here == Here::current() && (supervisor.runs() || supervisor.is_hidden())
    })
}

/// Decides who takes a checkpoint of `target`.
pub fn taker(
    jobs: &[Live],
    target: &Target,
    dir: Option<PathBuf>,
    kill: bool,
) -> Result<Taker, RequestError> {
    match (find(jobs, target), target) {
        (Some(live), _) if live.supervised => match dir {
            Some(_) => Err(RequestError::OtherDir(live.entry.dir)),
            None => Ok(Taker::Supervisor(live)),
        },
        // Its supervisor was killed: the job's own directory is the place.
        (Some(live), _) => {
            let dir = Some(dir.unwrap_or(live.entry.dir));
            Ok(Taker::Once(CheckpointOptions { dir, pid: live.entry.program.pid, kill }))
        }
        (None, Target::Pid(pid)) => Ok(Taker::Once(CheckpointOptions { dir, pid: *pid, kill })),
        (None, Target::Dir(at)) => Err(RequestError::NoJob(at.clone())),
    }
}

/// How long a process that was killed may take, in milliseconds.
pub const ITS_END: u16 = 10_000;

/// Asks a job's supervisor, if it has one.
fn asked(live: &Live, request: Request) -> Result<Reply, RequestError> {
    if live.supervised {
        return Ok(live.ask(request)?);
    }
    let (pid, dir) = (live.entry.program.pid, live.entry.dir.display().to_string());
    Err(RequestError::Unsupervised { pid, dir })
}

/// Asks a supervisor for a checkpoint; returns when it is durable. Where the program was ended with it, the supervisor has
/// ended, too: who asked may restart it at once.
pub fn ask(live: &Live, kill: bool) -> Result<CheckpointDone, RequestError> {
    match asked(live, Request::Checkpoint { kill })? {
        Reply::Checkpoint(done) => {
            if done.killed {
                live.entry.supervisor.wait_for_end(ITS_END.into());
            }
            Ok(done)
        }
        _ => Err(ControlError::Refused("the supervisor answered something else".into()).into()),
    }
}

/// Ends all processes of a job, and with them the job; returns when its supervisor has ended.
pub fn end(live: &Live) -> Result<(), RequestError> {
    asked(live, Request::Kill)?;
    live.entry.supervisor.wait_for_end(ITS_END.into());
    Ok(())
}

/// Gives a job another interval, for as long as this supervisor has it; 0 is off.
pub fn set_interval(live: &Live, interval: Duration) -> Result<(), RequestError> {
    let microseconds = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
    asked(live, Request::Interval { microseconds })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::lease::{Claim, Lease, Purpose};
    use crate::job::process::ProcessId;
    use crate::job::registry::Entry;
    use std::sync::Arc;

    #[test]
    fn a_supervisor_is_asked_and_without_one_it_is_done_once() {
        let me = ProcessId::current().unwrap();
        let entry = Entry {
            job: "j".into(),
            dir: "/".into(),
            program: me,
            supervisor: me,
            argv: vec![],
            uid: 0,
            socket: "/x".into(),
            front: None,
            dmtcp: None,
        };
        let live = Live { entry, supervised: true };
        let jobs = [live.clone()];
        let (pid, dir) = (Target::Pid(me.pid), Target::Dir("/".into()));
        assert_eq!(taker(&jobs, &dir, None, false).unwrap(), Taker::Supervisor(live.clone()));
        assert!(matches!(taker(&jobs, &pid, Some("/x".into()), false), Err(RequestError::OtherDir(_))));
        let orphan = [Live { supervised: false, ..live }];
        let Taker::Once(once) = taker(&orphan, &pid, None, true).unwrap() else { panic!() };
        assert_eq!((once.dir, once.pid, once.kill), (Some("/".into()), me.pid, true));
        let nobody = [ask(&orphan[0], true).err(), end(&orphan[0]).err()];
        assert!(nobody.iter().all(|error| matches!(error, Some(RequestError::Unsupervised { .. }))));
        assert!(matches!(taker(&[], &pid, None, false), Ok(Taker::Once(_))));
        assert!(matches!(taker(&[], &dir, None, false), Err(RequestError::NoJob(_))));
    }

    #[test]
    fn a_job_is_being_started_until_its_program_is_known() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("job");
        assert!(!is_starting(&path), "no such directory");
        let dir = Arc::new(JobDir::create(&path, &FsIds::current()).unwrap());
        assert!(!is_starting(&path), "no record");
        let purpose = Purpose::Launch { new: false };
        let claim =
            Claim { purpose, take_over: false, options: Default::default(), argv: vec!["./x".into()] };
        let lease = Lease::claim(&dir, claim).unwrap().lease;
        assert!(is_starting(&path));
        lease.started(ProcessId::current().unwrap(), None).unwrap();
        assert!(!is_starting(&path));
    }
}

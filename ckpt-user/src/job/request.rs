//! `ckptbpf checkpoint`: ask the job's supervisor, or, where nobody supervises, take one full checkpoint.

use std::path::PathBuf;

use super::control::{CheckpointDone, ControlError, Reply, Request};
use super::options::CheckpointOptions;
use super::registry::{Live, Target, find};

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
    /// Talking to the supervisor.
    #[error(transparent)]
    Control(#[from] ControlError),
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

/// Asks a supervisor for a checkpoint; returns when it is durable. Where the program was ended with it, the supervisor has
/// ended, too: who asked may restart it at once.
pub fn ask(live: &Live, kill: bool) -> Result<CheckpointDone, RequestError> {
    const ITS_END: u16 = 10_000;
    match live.ask(Request::Checkpoint { kill })? {
        Reply::Checkpoint(done) => {
            if done.killed {
                live.entry.supervisor.wait_for_end(ITS_END.into());
            }
            Ok(done)
        }
        _ => Err(ControlError::Refused("the supervisor answered something else".into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::process::ProcessId;
    use crate::job::registry::Entry;

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
        };
        let live = Live { entry, supervised: true };
        let jobs = [live.clone()];
        let (pid, dir) = (Target::Pid(me.pid), Target::Dir("/".into()));
        assert_eq!(taker(&jobs, &dir, None, false).unwrap(), Taker::Supervisor(live.clone()));
        assert!(matches!(taker(&jobs, &pid, Some("/x".into()), false), Err(RequestError::OtherDir(_))));
        let orphan = [Live { supervised: false, ..live }];
        let Taker::Once(once) = taker(&orphan, &pid, None, true).unwrap() else { panic!() };
        assert_eq!((once.dir, once.pid, once.kill), (Some("/".into()), me.pid, true));
        assert!(matches!(taker(&[], &pid, None, false), Ok(Taker::Once(_))));
        assert!(matches!(taker(&[], &dir, None, false), Err(RequestError::NoJob(_))));
    }
}

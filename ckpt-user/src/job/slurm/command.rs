//! A command that has so long to answer, and may say so much. What it does wrong is an error of its own: whoever asks goes on.

use crate::sys::{pidfd, spawn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of each of its streams.
const LIMIT: usize = 64 << 10;

/// How long one that was killed may take to be gone.
const ITS_END: Duration = Duration::from_secs(1);

/// What it has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// It ended with 0.
    pub has_succeeded: bool,
    pub output: String,
    pub errors: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("{program} cannot be run: {source}")]
    CannotRun {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} does not answer: {source}")]
    Silent {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program}: {errors}")]
    Failed { program: String, errors: String },
    #[error("{program} says what is not to be understood: {output:?}")]
    NotUnderstood { program: String, output: String },
}

/// Runs it, in the environment of this process without `unset`: variables by which a person has it answer otherwise, by the
/// beginnings of their names.
///
/// # Errors
/// It cannot be run, takes longer than `patience`, or says more than [`LIMIT`].
pub fn run(program: &str, arguments: &[&str], unset: &[&str], patience: Duration) -> Result<Said, NoAnswer> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let is_unset = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        unset.iter().any(|begin| name.starts_with(begin.as_bytes()))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_unset(name)) {
        command.env_remove(name);
    }
    spawn::end_with_us(&mut command);
    let program = program.to_owned();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(source) => return Err(NoAnswer::CannotRun { program, source }),
    };
    // Rather than the program it is this that goes where the job's memory is short.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000");
    listen(&mut child, Instant::now() + patience).map_err(|source| {
        let _ = child.kill();
        let gone = pidfd_of(&child).and_then(|ended| ready(&ended, &[], Instant::now() + ITS_END));
        if gone.is_ok() {
            let _ = child.wait();
        }
        NoAnswer::Silent { program, source }
    })
}

/// A stream of it, and what has come.
struct Pipe {
    /// None once it is closed.
    file: Option<File>,
    text: Vec<u8>,
}

impl Pipe {
    fn of(stream: Option<impl Into<OwnedFd>>) -> Self {
        let descriptor: Option<OwnedFd> = stream.map(Into::into);
        Self { file: descriptor.map(File::from), text: Vec::new() }
    }

    /// Takes some of what is there.
    fn take(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut block = [0; 4096];
        let got = file.read(&mut block)?;
        if got == 0 {
            self.file = None;
        }
        self.text.extend_from_slice(block.get(..got).unwrap_or_default());
        if self.text.len() > LIMIT { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).trim_end().to_owned()
    }
}

fn pidfd_of(child: &Child) -> io::Result<OwnedFd> {
    pidfd::open(Pid::from_raw(child.id().cast_signed()))
}

fn listen(child: &mut Child, until: Instant) -> io::Result<Said> {
    let ended = pidfd_of(child)?;
    let mut pipes = [Pipe::of(child.stdout.take()), Pipe::of(child.stderr.take())];
    loop {
        let (has_ended, has_more) = ready(&ended, &pipes, until)?;
        for (pipe, _) in pipes.iter_mut().zip(&has_more).filter(|(_, has_more)| **has_more) {
            pipe.take()?;
        }
        // Whom it has left behind may hold its streams: what is in them when it has ended is all.
        if has_ended && !has_more.contains(&true) {
            break;
        }
    }
    let has_succeeded = child.wait()?.success();
    let [output, errors] = pipes.map(|pipe| pipe.text());
    Ok(Said { has_succeeded, output, errors })
}

/// Waits until it has ended, or has something to say: whether it has, and each of its streams.
///
/// # Errors
/// TimedOut.
fn ready(ended: &OwnedFd, pipes: &[Pipe], until: Instant) -> io::Result<(bool, Vec<bool>)> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let files = pipes.iter().filter_map(|pipe| pipe.file.as_ref()).map(AsFd::as_fd);
        let mut fds: Vec<PollFd<'_>> =
            [ended.as_fd()].into_iter().chain(files).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut found = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let has_ended = found.next().unwrap_or(false);
        let has_more =
            pipes.iter().map(|pipe| pipe.file.is_some() && found.next().unwrap_or(false)).collect();
        return Ok((has_ended, has_more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    fn shell(line: &str, patience: Duration) -> Result<Said, NoAnswer> {
        run("sh", &["-c", line], &["CARGO_PKG_"], patience)
    }

    #[test]
    fn what_is_said_and_how_it_ended_is_told() {
        let said = shell("echo out; echo err >&2; exit 3", SOON).unwrap();
        assert_eq!(said, Said { has_succeeded: false, output: "out".into(), errors: "err".into() });
        assert!(shell("true", SOON).unwrap().has_succeeded);
        // Variables of this test process.
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
        assert_eq!(shell("echo $CARGO_PKG_NAME; test -n \"$PATH\"", SOON).unwrap().output, "");
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let begun = Instant::now();
        let error = shell("exec sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, NoAnswer::Silent { .. }), "{error}");
        // Nor are those whom it leaves behind with its streams.
        let said = shell("sleep 20 & echo out", SOON).unwrap();
        assert_eq!(said.output, "out");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[test]
    fn who_says_too_much_or_is_not_there_is_an_error() {
        let error = shell("while :; do echo more; done", SOON).unwrap_err();
        assert!(matches!(error, NoAnswer::Silent { .. }), "{error}");
        let error = run("/no/such/squeue", &[], &[], SOON).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/squeue cannot be run"), "{error}");
    }
}

//! Launch or restart, and of what: decided once, in the job, as Slurm is asked from there alone.
//!
//! What is gone on with is the program that was asked for: a directory that another one has written is refused, be it another line of
//! the script, another job with the same number, or one that was named by mistake.

use super::ask;
use super::place::{self, Job, SlurmRun};
use crate::job::directory::{DirectoryError, JobDir};
use crate::job::identity::{Identity, IdentityError, under_sudo};
use crate::job::options::{JobOptions, LaunchOptions, RestartOptions, SlurmOptions};
use crate::job::process::ProcessId;
use crate::job::record::{Here, JobRecord, Standing, standing};
use crate::sys::ids::FsIds;
use anyhow::{anyhow, bail};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Todo {
    Launch(LaunchOptions),
    Restart(RestartOptions),
    /// Nothing: the program has come to its end in an earlier run of the job.
    Nothing,
}

/// With the directory of the job's checkpoints, and the epoch of its last writer.
#[derive(Debug, Clone)]
pub struct Decided {
    pub todo: Todo,
    pub dir: PathBuf,
    pub epoch: u64,
}

/// Decides.
///
/// # Errors
/// There is no directory to go by, or what is in it cannot be gone on with.
pub fn decide(options: &SlurmOptions, job: &Job) -> anyhow::Result<Decided> {
    let variable = std::env::var_os("CKPTBPF_DIR");
    let dir = job.dir(options.job.dir.as_deref(), variable.as_deref())?;
    let record = record_of(&dir)?;
    let epoch = record.as_ref().map_or(0, |record| record.epoch);
    let decided = |todo| Ok(Decided { todo, dir: dir.clone(), epoch });
    let (own, words) = (job.run(), JobRecord::readable(&options.program));
    let is_of_this_run = |record: &&JobRecord| record.slurm.as_ref().is_some_and(|run| run.is(&own));
    let of_this_run = record.as_ref().filter(is_of_this_run);
    if let Some(record) = of_this_run {
        require_same_words(&dir, record, &words)?;
    }
    let has_ended = record.as_ref().is_some_and(|record| has_ended(record, &own));
    // The job was queued again for the sake of others.
    if has_ended && job.task.is_some() {
        require_same_program(&dir, record.as_ref(), &words)?;
        return decided(Todo::Nothing);
    }
    let has_been_left =
        |record: &JobRecord| is_unknown(record) && is_over(record.slurm.as_ref(), &own, in_queue);
    let take_over = options.job.take_over || record.as_ref().is_some_and(has_been_left);
    let here = JobOptions { dir: Some(dir.clone()), take_over, ..options.job.clone() };
    let launch = LaunchOptions {
        job: here.clone(),
        cpu_baseline: options.cpu_baseline,
        program: options.program.clone(),
        ..LaunchOptions::default()
    };
    let restart = |job: JobOptions, source: PathBuf| {
        let (lazy, files, clocks) = (options.lazy, options.files, options.clocks);
        Todo::Restart(RestartOptions { job, lazy, files, clocks, source, ..RestartOptions::default() })
    };
    if has_checkpoints(&dir)? {
        if of_this_run.is_some_and(|record| record.ended == Some(0)) {
            bail!(
                "{}: its program has come to its end in this run of the job: give another one a directory of its \
                 own (-d)",
                dir.display()
            );
        }
        require_same_program(&dir, record.as_ref(), &words)?;
        if has_ended {
            return decided(Todo::Nothing);
        }
        return decided(restart(JobOptions { dir: None, ..here }, dir.clone()));
    }
    match &options.from {
        Some(from) => {
            let from = source(from, job)?;
            let record = record_of(&from)?;
            require_same_program(&from, record.as_ref(), &words)?;
            require_over(&from, record.as_ref(), Some(&own))?;
            decided(restart(here, from))
        }
        None => decided(Todo::Launch(launch)),
    }
}

/// What the last writer has left; none where there was no writer.
///
/// # Errors
/// It cannot be read.
pub fn record_of(dir: &Path) -> anyhow::Result<Option<JobRecord>> {
    let Some(dir) = opened(dir)? else { return Ok(None) };
    Ok(dir.read_record()?)
}

/// As [`crate::job::run::choose`]: one that is damaged counts, and says so when it is restarted from.
fn has_checkpoints(dir: &Path) -> anyhow::Result<bool> {
    let Some(dir) = opened(dir)? else { return Ok(false) };
    Ok(!dir.generations()?.is_empty())
}

fn opened(dir: &Path) -> anyhow::Result<Option<JobDir>> {
    match JobDir::open(dir, &caller()?) {
        Ok(dir) => Ok(Some(dir)),
        Err(DirectoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// With whose rights the directory is looked into. The user database is not asked for what the process knows of itself: that may
/// take libraries, in the job's memory, and a network.
///
/// # Errors
/// There is no such user.
pub fn caller() -> Result<FsIds, IdentityError> {
    if !under_sudo() {
        return Ok(FsIds::current());
    }
    Ok(Identity::of_caller(None)?.fs_ids())
}

/// Whether the program has ended well by itself in an earlier run of the job: what it did after its last checkpoint is not done twice.
/// One that has failed is what the job was queued again for.
fn has_ended(record: &JobRecord, own: &SlurmRun) -> bool {
    let is_earlier = |run: &SlurmRun| run.job == own.job && run.restarts != own.restarts;
    record.slurm.as_ref().is_some_and(is_earlier) && record.ended == Some(0)
}

/// Within one run of a job, whatever is asked for in other words is another program.
fn require_same_words(dir: &Path, record: &JobRecord, words: &[String]) -> anyhow::Result<()> {
    if record.argv == words { Ok(()) } else { Err(another(dir, record, words)) }
}

/// The same program, wherever it is. From run to run its arguments may differ, as they may be made of the job's variables.
fn require_same_program(dir: &Path, record: Option<&JobRecord>, words: &[String]) -> anyhow::Result<()> {
    fn name(words: &[String]) -> Option<&OsStr> {
        Path::new(words.first()?).file_name()
    }
    // Where the record is lost, nobody knows.
    let Some(record) = record.filter(|record| !record.argv.is_empty() && record.argv != words) else {
        return Ok(());
    };
    if name(&record.argv) != name(words) {
        return Err(another(dir, record, words));
    }
    log::warn!("it goes on as `{}`, as it was begun", record.argv.join(" "));
    Ok(())
}

fn another(dir: &Path, record: &JobRecord, words: &[String]) -> anyhow::Error {
    anyhow!(
        "{}: what is in there is of `{}`, and not of `{}`: give each program a directory of its own (-d)",
        dir.display(),
        record.argv.join(" "),
        words.join(" ")
    )
}

/// Whether this machine does not know if the job still runs.
fn is_unknown(record: &JobRecord) -> bool {
    standing(record, &Here::current(), ProcessId::runs) == Standing::Elsewhere
}

/// Whether Slurm knows that a run is over. It begins no run of a job while another one is left, but on nodes that are lost to it:
/// whoever writes there finds another writer's epoch. Of another job it is asked.
fn is_over(run: Option<&SlurmRun>, own: &SlurmRun, in_queue: impl FnOnce(&str) -> Option<bool>) -> bool {
    match run {
        Some(run) if run.job == own.job => run.restarts < own.restarts,
        Some(run) => in_queue(&run.job) == Some(false),
        None => false,
    }
}

/// Whether a job is in the queue; none where Slurm does not tell.
fn in_queue(job: &str) -> Option<bool> {
    let found = ask::queue(job);
    let found = found.inspect_err(|error| log::warn!("whether job {job} is over is not known: {error}"));
    found.ok().map(|found| found.is_some())
}

/// `--from`: a job by its number, or a directory; `./41` for one that is called so.
fn source(from: &OsStr, job: &Job) -> anyhow::Result<PathBuf> {
    match from.to_str().filter(|word| place::is_name(word)) {
        Some(name) => Ok(job.dir_of(name)?),
        None => Ok(from.into()),
    }
}

/// Refuses to go on from what is still being written: by another job than that of `own`. Where Slurm does not tell, it is not known,
/// and that is said.
///
/// # Errors
/// Slurm says so.
pub fn require_over(from: &Path, record: Option<&JobRecord>, own: Option<&SlurmRun>) -> anyhow::Result<()> {
    let Some(record) = record.filter(|record| is_unknown(record)) else { return Ok(()) };
    let is_another = |run: &&SlurmRun| own.is_none_or(|own| run.job != own.job);
    let Some(run) = record.slurm.as_ref().filter(is_another) else { return Ok(()) };
    if in_queue(&run.job) == Some(true) {
        let (from, job) = (from.display(), &run.job);
        bail!(
            "{from}: job {job} writes there, and is in the queue: wait for its end, or cancel it (scancel {job})"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(job: &str, restarts: u32) -> SlurmRun {
        SlurmRun { job: job.into(), restarts, node: None }
    }

    /// Of `./count a`.
    fn record() -> JobRecord {
        let text = r#"{"job":"j","epoch":1,"host":"a","boot_id":"b","machine":null,"options":{},
            "supervisor":{"pid":1,"start_time":0},"argv":["./count","a"]}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_earlier_run_of_the_job_is_over_and_of_others_slurm_is_asked() {
        let own = run("41", 2);
        let nobody = |_: &str| -> Option<bool> { panic!("nobody is to be asked") };
        assert!(is_over(Some(&run("41", 1)), &own, nobody));
        assert!(!is_over(Some(&run("41", 2)), &own, nobody), "another step of this run");
        assert!(!is_over(None, &own, nobody), "outside of Slurm");
        for (answer, over) in [(Some(false), true), (Some(true), false), (None, false)] {
            assert_eq!(is_over(Some(&run("40", 9)), &own, |job| answer.filter(|_| job == "40")), over);
        }
    }

    #[test]
    fn the_program_stays_the_same_and_its_arguments_from_run_to_run_need_not() {
        let begun = record();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        let (dir, record) = (Path::new("d"), Some(&begun));
        let goes_on = |with: &[&str]| require_same_program(dir, record, &words(with)).is_ok();
        assert!(goes_on(&["./count", "a"]) && goes_on(&["/home/me/count", "b"]));
        assert!(!goes_on(&["./prepare", "a"]) && !goes_on(&["count.sh"]));
        assert!(require_same_program(dir, None, &words(&["x"])).is_ok());
        assert!(require_same_words(dir, &begun, &words(&["./count", "a"])).is_ok());
        let refused = require_same_words(dir, &begun, &words(&["./count", "b"])).unwrap_err().to_string();
        assert!(refused.contains("is of `./count a`, and not of `./count b`"), "{refused}");
    }

    #[test]
    fn what_has_come_to_its_end_is_not_run_again_by_a_later_run() {
        let ended = |restarts: u32, status: u8| JobRecord {
            slurm: Some(run("41", restarts)),
            ended: Some(status),
            ..record()
        };
        let own = run("41", 1);
        assert!(has_ended(&ended(0, 0), &own));
        assert!(!has_ended(&ended(1, 0), &own), "another line of the script");
        assert!(!has_ended(&ended(0, 85), &own));
        assert!(!has_ended(&ended(0, 0), &run("42", 1)));
        assert!(!has_ended(&record(), &own));
    }

    #[test]
    fn a_job_by_its_number_is_where_it_was_submitted_from() {
        let job = Job { id: 41, submitted_from: Some("/home/me".into()), ..Job::default() };
        let source = |word: &str| source(word.as_ref(), &job).unwrap();
        assert_eq!(source("40_3"), Path::new("/home/me/ckptbpf/40_3"));
        assert_eq!(source("./40"), Path::new("./40"));
        assert_eq!(source("/scratch/run7"), Path::new("/scratch/run7"));
    }
}

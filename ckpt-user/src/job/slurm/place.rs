//! Which Slurm job this is, and where its checkpoints are.

use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What a step's number is not: Slurm's own steps (the batch script, what `salloc` runs) have numbers from here on.
const SPECIAL_STEPS: u32 = 0xffff_fff0;

/// A job as its environment tells (sbatch(1), OUTPUT ENVIRONMENT VARIABLES; srun(1)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// `SLURM_JOB_ID`.
    pub id: u32,
    /// `SLURM_ARRAY_JOB_ID` and `SLURM_ARRAY_TASK_ID` of one of an array.
    pub of_array: Option<(u32, u32)>,
    /// `SLURM_PROCID`, in a step of several tasks.
    pub task: Option<u32>,
    /// `SLURM_RESTART_COUNT`: how often it was queued again.
    pub restarts: u32,
    /// `SLURMD_NODENAME`.
    pub node: Option<String>,
    /// `SLURM_SUBMIT_DIR`.
    pub submitted_from: Option<PathBuf>,
    /// Memory in MB that it may have on this node, where it was asked for.
    pub megabytes: Option<u64>,
    /// `SLURM_TASK_PID`: the process that Slurm has started, and signals.
    pub first_process: Option<u32>,
    /// `SLURM_JOB_END_TIME` (newer than Slurm 22.05): in seconds since 1970.
    pub end: Option<u64>,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoJob {
    #[error("this is not in a Slurm job (SLURM_JOB_ID is not set): use `ckptbpf run`")]
    NotInOne,
    #[error("{name} is {value:?}, and should be a number")]
    NoNumber { name: &'static str, value: OsString },
    #[error("SLURM_SUBMIT_DIR is not set: say where checkpoints go (-d, or CKPTBPF_DIR)")]
    NoDirectory,
}

impl Job {
    /// Of variables.
    ///
    /// # Errors
    /// They tell of none.
    pub fn of(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, NoJob> {
        let number = |name: &'static str| -> Result<Option<u32>, NoJob> {
            let Some(value) = variable(name) else { return Ok(None) };
            let parsed = value.to_str().and_then(|text| text.parse().ok());
            parsed.map(Some).ok_or(NoJob::NoNumber { name, value })
        };
        // What only helps is done without where it is none.
        let hint = |name: &'static str| variable(name)?.to_str()?.parse::<u64>().ok();
        let id = number("SLURM_JOB_ID")?.ok_or(NoJob::NotInOne)?;
        let of_array = number("SLURM_ARRAY_JOB_ID")?.zip(number("SLURM_ARRAY_TASK_ID")?);
        // A batch script has one process, whatever it may start.
        let is_step = hint("SLURM_STEP_ID").is_some_and(|step| step < u64::from(SPECIAL_STEPS));
        let is_one_of_many = is_step && number("SLURM_STEP_NUM_TASKS")?.is_some_and(|tasks| tasks > 1);
        let task = if is_one_of_many { number("SLURM_PROCID")? } else { None };
        let for_each = hint("SLURM_MEM_PER_CPU").zip(hint("SLURM_CPUS_ON_NODE"));
        let megabytes = hint("SLURM_MEM_PER_NODE").or(for_each.map(|(each, cpus)| each.saturating_mul(cpus)));
        Ok(Self {
            id,
            of_array,
            task,
            restarts: number("SLURM_RESTART_COUNT")?.unwrap_or(0),
            node: variable("SLURMD_NODENAME").and_then(|name| name.into_string().ok()),
            submitted_from: variable("SLURM_SUBMIT_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
            // 0 stands for all that there is.
            megabytes: megabytes.filter(|megabytes| *megabytes > 0),
            first_process: hint("SLURM_TASK_PID").and_then(|pid| pid.try_into().ok()),
            end: hint("SLURM_JOB_END_TIME"),
        })
    }

    /// What people know it by: one of an array by both numbers. It stays when the job is queued again.
    pub fn name(&self) -> String {
        match self.of_array {
            Some((array, task)) => format!("{array}_{task}"),
            None => self.id.to_string(),
        }
    }

    /// How scontrol(1) and squeue(1) are told of it: by its own number, which nobody but Slurm sets. A job that one of an array has
    /// submitted has the variables of that array, too, and is none of it. Where the number is the whole array's, both.
    pub fn told_as(&self) -> String {
        match self.of_array {
            Some((array, _)) if array == self.id => self.name(),
            _ => self.id.to_string(),
        }
    }

    /// Where its checkpoints are, the same for a job that was queued again: what is `given` (`-d`), else what the `variable`
    /// CKPTBPF_DIR says, else a directory of the job's. Each task of a step of several has a directory of its own below that.
    ///
    /// # Errors
    /// Nobody says where.
    pub fn dir(&self, given: Option<&Path>, variable: Option<&OsStr>) -> Result<PathBuf, NoJob> {
        let named = given.or(variable.filter(|dir| !dir.is_empty()).map(Path::new));
        let dir = match named {
            Some(dir) => dir.to_owned(),
            None => self.dir_of(&self.name())?,
        };
        Ok(match self.task {
            Some(task) => dir.join(format!("task_{task}")),
            None => dir,
        })
    }

    /// Where the checkpoints of a job are that was submitted from the same place, unless it was told otherwise.
    ///
    /// # Errors
    /// It is not known from where that was.
    pub fn dir_of(&self, job: &str) -> Result<PathBuf, NoJob> {
        let base = self.submitted_from.as_ref().ok_or(NoJob::NoDirectory)?;
        Ok(base.join("ckptbpf").join(job))
    }

    /// What the directory's record tells of it.
    pub fn run(&self) -> SlurmRun {
        SlurmRun { job: self.name(), restarts: self.restarts, node: self.node.clone() }
    }
}

/// A run of a Slurm job, as job.json has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlurmRun {
    /// As [`Job::name`].
    pub job: String,
    /// How often it had been queued again by then.
    #[serde(default)]
    pub restarts: u32,
    /// As Slurm calls it, which need not be the host's name.
    #[serde(default)]
    pub node: Option<String>,
}

impl SlurmRun {
    /// That of this process; none outside of a job.
    pub fn here() -> Option<Self> {
        Job::of(|name| std::env::var_os(name)).ok().map(|job| job.run())
    }

    /// Whether it is the same run of the same job.
    pub fn is(&self, other: &Self) -> bool {
        self.job == other.job && self.restarts == other.restarts
    }
}

/// Whether a word is a job's name: `41`, or `40_3` of an array. Nothing else is handed on to Slurm's commands.
pub fn is_name(word: &str) -> bool {
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = |part: &str| is_digits(part) && part.parse::<u32>().is_ok();
    let (job, task) = word.split_once('_').unwrap_or((word, "0"));
    is_number(job) && is_number(task)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(set: &[(&str, &str)]) -> Result<Job, NoJob> {
        Job::of(|name| set.iter().find(|one| one.0 == name).map(|one| one.1.into()))
    }

    const JOB: [(&str, &str); 2] = [("SLURM_JOB_ID", "41"), ("SLURM_SUBMIT_DIR", "/home/me")];

    fn with(more: &[(&str, &str)]) -> Job {
        of(&[&JOB[..], more].concat()).unwrap()
    }

    #[test]
    fn jobs_arrays_and_tasks_of_steps_have_places_of_their_own() {
        let dir = |more: &[(&str, &str)]| with(more).dir(None, None).unwrap();
        assert_eq!(dir(&[]), Path::new("/home/me/ckptbpf/41"));
        let array = [("SLURM_ARRAY_JOB_ID", "40"), ("SLURM_ARRAY_TASK_ID", "3")];
        assert_eq!(dir(&array), Path::new("/home/me/ckptbpf/40_3"));
        assert_eq!((with(&array).name().as_str(), with(&array).told_as().as_str()), ("40_3", "41"));
        let last = [("SLURM_ARRAY_JOB_ID", "41"), array[1]];
        assert_eq!((with(&last).told_as().as_str(), with(&[]).told_as().as_str()), ("41_3", "41"));
        let step = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1")];
        assert_eq!(dir(&step), Path::new("/home/me/ckptbpf/41/task_1"));
        let alone = [("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")];
        assert_eq!(dir(&alone), Path::new("/home/me/ckptbpf/41"));
        let script = [("SLURM_STEP_ID", "4294967291"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "0")];
        assert_eq!(dir(&script), Path::new("/home/me/ckptbpf/41"), "a batch script");
        // Wherever they are told to go, tasks of one step do not meet.
        assert_eq!(with(&step).dir(Some(Path::new("d")), None).unwrap(), Path::new("d/task_1"));
        assert_eq!(with(&[]).dir(None, Some(OsStr::new("/c"))).unwrap(), Path::new("/c"));
        assert_eq!(with(&[]).dir(None, Some(OsStr::new(""))).unwrap(), Path::new("/home/me/ckptbpf/41"));
    }

    #[test]
    fn what_is_no_job_says_so() {
        assert_eq!(of(&[]), Err(NoJob::NotInOne));
        assert_eq!(of(&[JOB[0]]).unwrap().dir(None, None), Err(NoJob::NoDirectory));
        let wrong = of(&[("SLURM_JOB_ID", "4x")]).unwrap_err();
        assert_eq!(wrong.to_string(), "SLURM_JOB_ID is \"4x\", and should be a number");
    }

    #[test]
    fn memory_and_the_end_are_taken_where_they_are_told() {
        let cpus = [("SLURM_MEM_PER_CPU", "10"), ("SLURM_CPUS_ON_NODE", "2")];
        assert_eq!(with(&cpus).megabytes, Some(20));
        assert_eq!(with(&[("SLURM_MEM_PER_NODE", "0")]).megabytes, None);
        assert_eq!(with(&[("SLURM_JOB_END_TIME", "soon")]).end, None);
        let again = with(&[("SLURM_RESTART_COUNT", "2"), ("SLURMD_NODENAME", "n1")]).run();
        assert_eq!(again, SlurmRun { job: "41".into(), restarts: 2, node: Some("n1".into()) });
    }

    #[test]
    fn names_of_jobs_are_numbers() {
        assert!(["41", "40_3", "4294967295"].into_iter().all(is_name));
        let none = ["", "_", "4_", "_3", "-h", "41 42", "4294967296", "40_3_1", "+1", "../41"];
        assert!(!none.into_iter().any(is_name));
    }

    proptest! {
        #[test]
        fn no_environment_is_too_strange(
            values in proptest::collection::vec((0usize..10, "[0-9a-z/-]{0,12}"), 0..12)
        ) {
            let names = [
                "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID",
                "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_RESTART_COUNT", "SLURM_MEM_PER_CPU",
                "SLURM_CPUS_ON_NODE", "SLURM_SUBMIT_DIR",
            ];
            let set = values.iter().map(|(at, value)| (names[*at], value.as_str()));
            if let Ok(job) = of(&set.collect::<Vec<_>>()) {
                prop_assert!(is_name(&job.name()) && is_name(&job.told_as()));
            }
        }
    }
}

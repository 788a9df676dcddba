//! What is asked of Slurm, by its own commands: they know where it is, and who we are to it.

use super::command::{self, NoAnswer, Said};
use super::left::{self, Told};
use super::place;
use std::time::Duration;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Variables by which a person has squeue(1) show something else.
const WISHES: &[&str] = &["SQUEUE_", "SLURM_CLUSTERS"];

/// The job in the queue; none if it is not there any more.
///
/// # Errors
/// Slurm does not tell.
pub fn queue(job: &str) -> Result<Option<Told>, NoAnswer> {
    let said = asked("squeue", &left::question(job), job)?;
    match (said.has_succeeded, left::parse(&said.output)) {
        (true, Some(told)) => Ok(Some(told)),
        (true, None) if said.output.is_empty() => Ok(None),
        (true, None) => Err(NoAnswer::NotUnderstood { program: "squeue".into(), output: said.output }),
        // It is forgotten a while after its end (MinJobAge).
        (false, _) if said.errors.contains("Invalid job id") => Ok(None),
        (false, _) => Err(NoAnswer::Failed { program: "squeue".into(), errors: said.errors }),
    }
}

/// Has the job queued again, which ends it as it runs now.
///
/// # Errors
/// It is not.
pub fn requeue(job: &str) -> Result<(), NoAnswer> {
    let said = asked("scontrol", &["requeue", job], job)?;
    if said.has_succeeded {
        return Ok(());
    }
    Err(NoAnswer::Failed { program: "scontrol requeue".into(), errors: said.errors })
}

fn asked(program: &str, arguments: &[&str], job: &str) -> Result<Said, NoAnswer> {
    if !place::is_name(job) {
        return Err(NoAnswer::NotUnderstood { program: "the job's name".into(), output: job.to_owned() });
    }
    command::run(program, arguments, WISHES, PATIENCE)
}

//! `dmtcp_command`, and what is typed to a coordinator: the jobs are asked over their control sockets.

use super::joined;
use super::options::{Asked, Order};
use crate::cli::print::print;
use crate::job::control::JobStatus;
use crate::job::coordinator::{self, Name, State};
use crate::job::identity::Identity;
use crate::job::registry::Live;
use crate::job::request::{self, RequestError};
use crate::sys::ids::FsIds;
use anyhow::bail;
use nix::unistd::gethostname;
use std::time::Duration;

/// Gives the orders of a command line.
///
/// # Errors
/// The first that cannot be followed.
pub fn run(asked: &Asked) -> anyhow::Result<()> {
    if asked.orders.is_empty() || !asked.rest.is_empty() {
        bail!("no order was given: dmtcp_command [-p PORT] -s | -l | -c | -bc | -kc | -k | -q | -i SECONDS");
    }
    let caller = Identity::of_caller(None)?.fs_ids();
    let name = joined::named(asked)?;
    asked.orders.iter().try_for_each(|order| give(*order, name, &caller))
}

/// Gives an order to the jobs of a coordinator.
///
/// # Errors
/// There is no such coordinator, or no job of it; or a job does not follow, as one whose supervisor was killed.
pub fn give(order: Order, name: Name, caller: &FsIds) -> anyhow::Result<()> {
    let state = coordinator::load(name, caller);
    let jobs = coordinator::jobs(name, caller);
    if state.is_none() && jobs.is_empty() {
        bail!(
            "there is no coordinator at port {} here, and no job of one (-p, or DMTCP_COORD_PORT, names another)",
            name.port
        );
    }
    match order {
        Order::Status => print(&status(name, state.as_ref(), &told_by(&jobs)))?,
        Order::List => print(&list(&jobs, &host()))?,
        Order::Checkpoint => each(&jobs, |job| request::ask(job, false).map(drop))?,
        Order::CheckpointAndKill => each(&jobs, |job| request::ask(job, true).map(drop))?,
        Order::Kill => each(&jobs, request::end)?,
        Order::Quit => {
            coordinator::remove(name, caller);
            all(&jobs, request::end)?;
        }
        Order::Interval(seconds) => {
            if let Some(state) = state {
                let state = State { interval_s: Some(seconds), ..state };
                coordinator::store(name, &state, caller)?;
            }
            let interval = Duration::from_secs(seconds);
            all(&jobs, |job| request::set_interval(job, interval))?;
        }
    }
    Ok(())
}

/// Has all jobs follow, also those after one that does not.
fn all(jobs: &[Live], follow: impl Fn(&Live) -> Result<(), RequestError>) -> Result<(), RequestError> {
    let results: Vec<Result<(), RequestError>> = jobs.iter().map(follow).collect();
    results.into_iter().collect()
}

/// The same, and there has to be one.
fn each(jobs: &[Live], follow: impl Fn(&Live) -> Result<(), RequestError>) -> anyhow::Result<()> {
    if jobs.is_empty() {
        bail!("no program of this coordinator's runs");
    }
    Ok(all(jobs, follow)?)
}

/// What supervisors say of their jobs; one that is gone by now says nothing.
fn told_by(jobs: &[Live]) -> Vec<JobStatus> {
    jobs.iter().filter_map(|job| job.status().ok().flatten()).collect()
}

/// As dmtcp_command prints it, for scripts that look for `RUNNING=`.
fn status(name: Name, state: Option<&State>, jobs: &[JobStatus]) -> String {
    let peers: u64 = jobs.iter().map(|job| job.processes).sum();
    let running = if peers > 0 { "yes" } else { "no" };
    let of_jobs = jobs.iter().find_map(|job| job.interval_s).map(|seconds| seconds.to_string());
    let of_state = state.and_then(|state| state.interval_s).filter(|seconds| *seconds > 0);
    let of_state = of_state.map(|seconds| seconds.to_string());
    let interval = if jobs.is_empty() { of_state } else { of_jobs };
    let interval = interval.as_deref().unwrap_or("0 (checkpoint manually)");
    format!(
        "Coordinator:\n  Host: localhost\n  Port: {}\nStatus...\n  NUM_PEERS={peers}\n  RUNNING={running}\n  \
         CKPT_INTERVAL={interval}\n",
        name.port
    )
}

/// A line a job.
fn list(jobs: &[Live], host: &str) -> String {
    let mut text = String::from("Client List:\n#, PROG[virtPID:realPID]@HOST, DMTCP-UNIQUEPID, STATE\n");
    for (number, job) in jobs.iter().enumerate() {
        let entry = &job.entry;
        let program = entry.argv.first().map(String::as_str).unwrap_or_default();
        let (pid, number) = (entry.program.pid, number + 1);
        let state = if job.supervised { "RUNNING" } else { "RUNNING (without ckptbpf)" };
        let line = format!("{number}, {program}[{pid}:{pid}]@{host}, {}, {state}", entry.job);
        text.extend(line.chars().map(|c| if c.is_control() { '?' } else { c }));
        text.push('\n');
    }
    text
}

fn host() -> String {
    gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_dmtcp_s() {
        let name = Name { port: 7779, slurm_job: Some(3) };
        let job = JobStatus { processes: 3, interval_s: Some(10.0), ..JobStatus::default() };
        let text = status(name, None, &[job]);
        for line in ["  Port: 7779", "  NUM_PEERS=3", "  RUNNING=yes", "  CKPT_INTERVAL=10"] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        let state = State { interval_s: Some(60), ..State::default() };
        let none = status(name, Some(&state), &[]);
        assert!(none.contains("NUM_PEERS=0\n  RUNNING=no\n  CKPT_INTERVAL=60\n"), "{none}");
        let manual = status(name, Some(&state), &[JobStatus { processes: 1, ..JobStatus::default() }]);
        assert!(manual.contains("CKPT_INTERVAL=0 (checkpoint manually)"), "{manual}");
    }
}

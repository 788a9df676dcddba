//! `ckptbpf status`: the running jobs, or one.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Status as Exit, print};
use crate::job::control::JobStatus;
use crate::job::registry::{Live, Target, clear, find, live};
use crate::job::runtime_dir::RuntimeDir;
use crate::job::terminal::{duration, say};

/// Show the running jobs, or one
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!("ckptbpf status", "ckptbpf status --json ckpt_count | jq .last_age_s"))]
pub struct Status {
    /// JSON: an array of all jobs, or the object of the one that is named
    #[arg(long)]
    json: bool,
    /// Clear what jobs that are over have left, ask nobody, and show nothing
    #[arg(long, conflicts_with_all = ["json", "target"])]
    clear: bool,
    /// A job's directory, or any process of it
    #[arg(value_name = "DIR|PID")]
    target: Option<OsString>,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        if self.clear {
            clear(&RuntimeDir::visible());
            return Ok(Exit::DONE);
        }
        let mut jobs = live(&RuntimeDir::visible());
        if let Some(target) = &self.target {
            let shown = target.to_string_lossy();
            let found = find(&jobs, &Target::parse(target));
            let none = || {
                anyhow::anyhow!("no running job is {shown}; ckptbpf status shows all (root sees everybody's)")
            };
            jobs = vec![found.ok_or_else(none)?];
        }
        let asked: Vec<(Live, Option<JobStatus>)> = jobs.into_iter().map(ask).collect();
        if self.json {
            let mut objects: Vec<Value> = asked.iter().map(object).collect();
            let value = if self.target.is_some() { objects.pop() } else { Some(Value::Array(objects)) };
            print::json(&value.unwrap_or_default())?;
        } else if asked.is_empty() {
            say("no running jobs");
        } else {
            let mut rows = vec![
                ["PID", "SUPERVISOR", "INTERVAL", "LAST", "AGE", "DIR", "PROGRAM"].map(String::from).to_vec(),
            ];
            rows.extend(asked.iter().map(row));
            print::print(&print::table(&rows, &[0, 1, 3]))?;
        }
        Ok(Exit::DONE)
    }
}

/// A supervisor that does not answer is told of, and the job is shown all the same.
fn ask(job: Live) -> (Live, Option<JobStatus>) {
    let status = job.status().unwrap_or_else(|error| {
        say(&format!("pid {}: {error}", job.entry.program.pid));
        None
    });
    (job, status)
}

fn row((job, status): &(Live, Option<JobStatus>)) -> Vec<String> {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).map_or_else(|_| "?".into(), duration);
    let none = || "-".to_owned();
    let known = |field: Option<String>| field.unwrap_or_else(none);
    let supervisor = if job.supervised { job.entry.supervisor.pid.to_string() } else { "none".into() };
    let interval = status.as_ref().map(|status| status.interval_s.map_or("on request".into(), seconds));
    let last = status.as_ref().and_then(|status| status.last_id).map(|id| id.to_string());
    let age = status.as_ref().and_then(|status| status.last_age_s).map(seconds);
    vec![
        job.entry.program.pid.to_string(),
        supervisor,
        known(interval),
        known(last),
        known(age),
        job.entry.dir.display().to_string(),
        job.entry.argv.join(" "),
    ]
}

fn object((job, status): &(Live, Option<JobStatus>)) -> Value {
    let entry = &job.entry;
    let mut value = json!({
        "pid": entry.program.pid,
        "start_time": entry.program.start_time,
        "supervised": job.supervised,
        "supervisor_pid": job.supervised.then_some(entry.supervisor.pid),
        "job": entry.job,
        "dir": entry.dir,
        "argv": entry.argv,
        "uid": entry.uid,
    });
    let status = status.as_ref().and_then(|status| serde_json::to_value(status).ok());
    if let (Some(value), Some(Value::Object(status))) = (value.as_object_mut(), status) {
        value.extend(status.into_iter().filter(|(key, _)| key != "ok" && key != "pid"));
    }
    value
}

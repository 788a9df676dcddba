//! `ckptbpf list`: the checkpoints of a job.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Status, print};
use crate::image::{self, Listed};
use crate::job::terminal::{bytes, duration, say};

/// List the checkpoints of a job, newest last
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!("ckptbpf list ckpt_count", "ckptbpf list --json ckpt_count | jq '.[-1].id'"))]
pub struct List {
    /// JSON: an array with an object a checkpoint
    #[arg(long)]
    json: bool,
    /// The job's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        let _as = super::as_owner(&self.dir)?;
        let listed = image::list(&self.dir)?;
        if self.json {
            print::json(&Value::Array(listed.iter().map(object).collect()))?;
        } else if listed.is_empty() {
            say(&format!("no checkpoints in {}", self.dir.display()));
        } else {
            let head = ["ID", "PARENT", "KIND", "TIME", "FREEZE", "PAGES", "STORED", "TASKS", "STATE"];
            let mut rows = vec![head.map(String::from).to_vec()];
            rows.extend(listed.iter().map(row));
            print::print(&print::table(&rows, &[0, 1, 4, 5, 6, 7]))?;
        }
        Ok(Status::DONE)
    }
}

/// The object of the contract: fields are added, never renamed; a damaged file has nulls.
pub(super) fn object(listed: &Listed) -> Value {
    let mut value = json!({
        "id": listed.id.0, "parent": null, "kind": null, "time": null, "freeze_us": null, "elapsed_us": null,
        "pages": null, "zero_pages": null, "bytes_memory": null, "bytes_stored": null, "tasks": null,
        "complete": listed.complete,
    });
    let Some(fields) = value.as_object_mut() else { return value };
    let parent = listed.header.as_ref().and_then(|header| header.parent).map(|parent| parent.0);
    fields.insert("parent".into(), parent.into());
    if let Some(Value::Object(summary)) =
        listed.summary.as_ref().and_then(|summary| serde_json::to_value(summary).ok())
    {
        fields.extend(summary);
    }
    if let Some(damage) = &listed.damage {
        fields.insert("damage".into(), damage.as_str().into());
    }
    value
}

fn row(listed: &Listed) -> Vec<String> {
    let none = || "-".to_owned();
    let parent = listed.header.as_ref().and_then(|header| header.parent);
    let mut row = vec![listed.id.to_string(), parent.map_or_else(none, |parent| parent.to_string())];
    match &listed.summary {
        Some(summary) => row.extend([
            super::kind_name(summary).to_owned(),
            image::rfc3339(summary.time_unix_ns),
            duration(Duration::from_micros(summary.freeze_us)),
            summary.pages.to_string(),
            bytes(summary.bytes_stored),
            summary.tasks.to_string(),
        ]),
        None => row.extend(std::iter::repeat_with(none).take(6)),
    }
    row.push(match &listed.damage {
        None if listed.complete => "complete".into(),
        None => "an ancestor is missing or damaged".into(),
        Some(damage) => damage.clone(),
    });
    row
}

//! `ckptbpf inspect`: what is in a checkpoint.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Status, print};
use crate::image::{Chain, Generation};
use crate::job;
use crate::job::terminal::say;

/// Show what is in a checkpoint: tasks, memory, files, versions
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!(
    "ckptbpf inspect ckpt_count",
    "ckptbpf inspect --json ckpt_count/000017.ckpt | jq .tasks",
))]
pub struct Inspect {
    /// One line of JSON
    #[arg(long)]
    json: bool,
    /// A job's directory (its newest whole checkpoint), or one checkpoint's file
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        let _as = super::as_owner(&self.path)?;
        let value = if self.path.is_dir() {
            let opened = Chain::open(&self.path, None)?;
            opened.warnings.iter().for_each(|warning| say(warning));
            let chain: Vec<u64> = opened.chain.generations().iter().map(|one| one.header().id.0).collect();
            describe(opened.chain.newest(), Some(chain))?
        } else {
            describe(&Generation::open(&self.path)?, None)?
        };
        if self.json {
            print::json(&value)?;
        } else {
            let mut text = String::new();
            outline(&value, 0, &mut text);
            print::print(&text)?;
        }
        Ok(Status::DONE)
    }
}

/// Header and summary, with what the metadata holds beside them.
fn describe(generation: &Generation, chain: Option<Vec<u64>>) -> anyhow::Result<Value> {
    let header = generation.header();
    let mut value = json!({
        "file": generation.path(),
        "id": header.id.0,
        "parent": header.parent.map(|parent| parent.0),
        "chain": chain,
        "format_version": crate::image::FORMAT_VERSION,
        "features": header.features,
        "owner_uid": generation.owner_uid(),
        "file_bytes": generation.file_length(),
    });
    let parts = [serde_json::to_value(generation.summary())?, job::describe(generation.metadata())?];
    if let Some(fields) = value.as_object_mut() {
        for part in parts {
            if let Value::Object(part) = part {
                fields.extend(part);
            }
        }
    }
    Ok(value)
}

/// JSON as an indented outline: `key: value`, lists of objects with a dash each.
fn outline(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if is_plain(value) {
                    text.push_str(&format!("{indent}{key}: {}\n", plain(value)));
                } else {
                    text.push_str(&format!("{indent}{key}:\n"));
                    outline(value, depth + 1, text);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_plain(item) {
                    text.push_str(&format!("{indent}- {}\n", plain(item)));
                    continue;
                }
                let mut inner = String::new();
                outline(item, depth + 1, &mut inner);
                let dashed = inner.get(indent.len() + 2..).unwrap_or_default();
                text.push_str(&format!("{indent}- {dashed}"));
            }
        }
        other => text.push_str(&format!("{indent}{}\n", plain(other))),
    }
}

fn is_plain(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        // Text from a file that is not trusted: nothing that a terminal acts upon.
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_is_readable_and_harmless() {
        let value = json!({"id": 3, "parent": null, "chain": [3, 2], "tasks": [{"pid": 7, "name": "a\u{1b}[2J"}, {"pid": 8}]});
        let mut text = String::new();
        outline(&value, 0, &mut text);
        for line in
            ["id: 3", "parent: -", "chain: 3, 2", "tasks:", "  - name: a?[2J", "    pid: 7", "  - pid: 8"]
        {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}

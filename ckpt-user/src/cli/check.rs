//! `ckptbpf check`: does it work here?

use super::{Status, print};
use clap::Args;

/// Show what this kernel and these privileges allow, and what to do about the rest
///
/// Exit status: 0 programs can be checkpointed and restarted here, 1 they cannot.
#[derive(Debug, Clone, Args)]
#[command(after_help = super::examples!("ckptbpf check", "sudo ckptbpf check --json | jq .works"))]
pub struct Check {
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        let report = crate::check::run();
        if self.json {
            let mut value = serde_json::to_value(&report)?;
            if let Some(fields) = value.as_object_mut() {
                fields.insert("works".into(), report.main_job_works().into());
            }
            print::json(&value)?;
        } else {
            print::print(&report.to_string())?;
        }
        Ok(if report.main_job_works() { Status::DONE } else { Status::NO })
    }
}

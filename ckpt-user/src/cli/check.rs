//! `ckptbpf check`: does it work here?

use clap::Args;
use serde_json::json;

use super::{Status, print};
use crate::check::{Report, State, report};

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
        let report = report();
        if self.json {
            print::json(
                &json!({ "works": report.works(), "findings": serde_json::to_value(&report.findings)? }),
            )?;
        } else {
            print::print(&text(&report))?;
        }
        Ok(if report.works() { Status::DONE } else { Status::NO })
    }
}

fn text(report: &Report) -> String {
    let mut rows = Vec::new();
    for finding in &report.findings {
        let state = match finding.state {
            State::Works => "works",
            State::Fallback => "fallback",
            State::Missing => "missing",
        };
        rows.push(vec![finding.name.to_owned(), state.to_owned(), finding.detail.clone()]);
        rows.extend(
            finding.remedy.iter().map(|remedy| vec![String::new(), String::new(), format!("→ {remedy}")]),
        );
    }
    let verdict = if report.works() {
        "programs can be checkpointed and restarted here\n"
    } else {
        "programs cannot be checkpointed and restarted here; what is missing is marked above\n"
    };
    print::table(&rows, &[]) + verdict
}

//! `cargo xtask bench`: how long programs are stopped, how long checkpoints take, and what they cost, beside others in one run.
//!
//! ```text
//! cases (which fit?) ─▶ case by case, in rounds: the machine's limits, native, ckptbpf, criu, DMTCP ─▶ JSON, Markdown
//! ```
//! Nothing here is asserted: tests hold the counts behind these numbers. A case is selected by a part of its name, so that
//! another group of cases needs no command of its own. Who is missing, what does not fit and what fails is said, in the files
//! too. Everything is in folders that go with it, and every program ends with it, however this ends.

mod case;
mod ckptbpf;
mod columns;
mod contender;
mod criu;
mod dmtcp;
mod format;
mod limits;
mod machine;
mod measure;
mod report;
mod stage;
mod stats;
mod table;
mod usage;
mod victim;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cmd::{self, step};
use crate::{setup, test};
use case::Skipped;
use machine::Machine;
use measure::{Extent, QUICK, Tool, WHOLE};
use report::Report;
use stage::Stage;

/// Written by --write.
const PAGE: &str = "docs/benchmarks.md";

#[derive(clap::Args)]
pub struct Args {
    /// Only name the cases
    #[arg(long)]
    list: bool,
    /// Some minutes, not an hour: less of each, and nothing larger than 1 GiB unless it is named
    #[arg(long)]
    quick: bool,
    /// Where images are written meanwhile: on the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "target")]
    dir: PathBuf,
    /// Compare with DMTCP, which was installed there
    #[arg(long, value_name = "PATH")]
    dmtcp: Option<PathBuf>,
    /// Write all that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/benchmarks.md
    #[arg(long)]
    write: bool,
    /// Only the cases with one of these in their name
    filters: Vec<String>,
}

impl Args {
    /// To repeat it, without the names of folders.
    fn command(&self) -> String {
        let mut words = vec!["cargo xtask bench"];
        words.extend(self.quick.then_some("--quick"));
        words.extend(self.dmtcp.is_some().then_some("--dmtcp PATH"));
        words.extend(self.filters.iter().map(String::as_str));
        words.join(" ")
    }

    fn extent(&self) -> Extent {
        if self.quick { QUICK } else { WHOLE }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let (cases, skipped) = case::select(&args.filters, args.quick)?;
    if args.list {
        cases.iter().for_each(|case| println!("{:<18} {case}", case.name));
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "run it as root, which criu and short freezes take");
    step("setting up");
    setup::to_build()?;
    test::build()?;
    let stage = Stage::set(&args.dir)?;
    let Compared { tools, versions, missing } = Compared::here(args, &stage)?;
    missing.iter().for_each(|who| println!("not compared: {who}"));
    let date = cmd::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned();
    let machine = Machine::here(stage.folder())?;
    let (command, outcomes) = (args.command(), Vec::new());
    let mut report = Report { command, date, machine, versions, missing, skipped, outcomes };
    for case in &cases {
        if let Some(why) = case.shortage(stage.spare()?) {
            report.skipped.push(Skipped { case: case.name, why });
        } else {
            report.outcomes.push(measure::case(&stage, case, &tools, &args.extent())?);
        }
    }
    drop(stage);
    write(args, &report)
}

/// Who is compared.
struct Compared {
    tools: Vec<Tool>,
    versions: Vec<String>,
    /// Who is not, and why.
    missing: Vec<String>,
}

impl Compared {
    fn here(args: &Args, stage: &Stage) -> Result<Self> {
        let ours = cmd::output(stage.short(&stage.ckptbpf).arg("--version"))?;
        let (mut tools, mut missing) = (vec![Tool::Native, Tool::Ckptbpf], Vec::new());
        let mut versions: Vec<String> = ours.lines().take(1).map(str::to_owned).collect();
        if let Some(version) = criu::version() {
            tools.push(Tool::Criu);
            versions.push(version);
        } else {
            missing.push("criu: it is not in PATH (Debian's package is criu)".to_owned());
        }
        if let Some(installed) = &args.dmtcp {
            let installed = fs::canonicalize(installed).with_context(|| installed.display().to_string())?;
            let bin = dmtcp::programs(&installed);
            versions.push(dmtcp::version(&bin)?);
            tools.push(Tool::Dmtcp(bin));
        } else {
            missing.push("DMTCP: --dmtcp PATH does not say where it is".to_owned());
        }
        Ok(Self { tools, versions, missing })
    }
}

/// Fails if ckptbpf did, once all is written.
fn write(args: &Args, report: &Report) -> Result<()> {
    let text = table::markdown(report);
    step("what was measured");
    println!("{text}");
    if let Some(file) = &args.json {
        fs::write(file, report.json()?).with_context(|| format!("writing {}", file.display()))?;
    }
    if args.write {
        fs::write(PAGE, text).with_context(|| format!("writing {PAGE}"))?;
    }
    let ours = |outcome: &measure::Outcome| outcome.of("ckptbpf").is_some_and(|ours| ours.failed.is_some());
    let failed: Vec<&str> = report.outcomes.iter().filter(|one| ours(one)).map(|one| one.case.name).collect();
    if !failed.is_empty() {
        bail!("ckptbpf failed in {}", failed.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_no_folder() {
        let args = Args {
            list: false,
            quick: true,
            dir: "/somewhere".into(),
            dmtcp: Some("/else".into()),
            json: Some("file".into()),
            write: true,
            filters: vec!["freeze-1g".to_owned()],
        };
        assert_eq!(args.command(), "cargo xtask bench --quick --dmtcp PATH freeze-1g");
    }
}

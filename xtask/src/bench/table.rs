//! docs/benchmarks.md: what was measured, in tables, with ratios beside the numbers.

use super::columns;
use super::format::size;
use super::report::Report;

const HOW: &str = "\
Each case is one program (`tests/victims/bench.c`) that computes over its memory, writes to some of it, and looks at the
clock all the time. *Seen* is the longest time between two of its looks while a checkpoint is taken: the freeze as the
program has it, scheduling and all. *Told* is what who stops it says of that. Each contender has a new program in each round,
one at a time and in turn, right after that has filled its memory. Times are middles unless said otherwise.
";

/// The whole file.
pub fn markdown(report: &Report) -> String {
    let mut parts = vec!["# Benchmarks\n".to_owned(), introduction(report), HOW.to_owned()];
    let cases: Vec<String> = report
        .outcomes
        .iter()
        .map(|outcome| format!("- `{}`: {}\n", outcome.case.name, outcome.case))
        .collect();
    parts.push(cases.concat());
    for table in columns::ALL {
        let rows: String =
            report.outcomes.iter().map(|outcome| line(outcome.case.name, &(table.row)(outcome))).collect();
        let rule = vec!["---".to_owned(); table.heading.len()];
        let heading: Vec<String> = table.heading.iter().map(|&word| word.to_owned()).collect();
        let head = line("case", &heading) + &line("---", &rule);
        parts.push(format!("## {}\n\n{}\n{head}{rows}", table.name, table.means));
    }
    parts.extend(not_measured(report));
    parts.join("\n")
}

fn line(first: &str, cells: &[String]) -> String {
    format!("| {first} | {} |\n", cells.join(" | "))
}

fn introduction(report: &Report) -> String {
    let machine = &report.machine;
    let kind = if machine.is_virtual { "a virtual machine, " } else { "" };
    format!(
        "Written on {} by `{}`. Nothing in it is asserted by a test; the ratios carry over to other machines, the numbers do not.\n\n\
         - {kind}{} processors ({}), {} of memory, Linux {}, transparent huge pages: {}, images on {}\n\
         - {}\n",
        report.date,
        report.command,
        machine.processors,
        machine.processor,
        size(machine.memory_bytes),
        machine.kernel,
        machine.huge_pages,
        machine.file_system,
        report.versions.iter().chain(&report.missing).cloned().collect::<Vec<_>>().join("\n- "),
    )
}

fn not_measured(report: &Report) -> Option<String> {
    let skipped = report.skipped.iter().map(|one| format!("{}: {}", one.case, one.why));
    let lines: Vec<String> = skipped.chain(report.failures()).map(|line| format!("- {line}\n")).collect();
    (!lines.is_empty()).then(|| format!("## Not measured\n\n{}", lines.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::Skipped;
    use crate::bench::machine::Machine;

    #[test]
    fn what_is_missing_is_in_the_file() {
        let machine = Machine {
            processor: "A Processor".to_owned(),
            processors: 2,
            is_virtual: true,
            kernel: "6.18".to_owned(),
            memory_bytes: 16 << 30,
            huge_pages: "madvise".to_owned(),
            file_system: "ext2/ext3".to_owned(),
        };
        let report = Report {
            command: "cargo xtask bench --quick".to_owned(),
            date: "2026-11-30".to_owned(),
            machine,
            versions: vec!["ckptbpf 0.1.0".to_owned()],
            missing: vec!["DMTCP: no --dmtcp PATH".to_owned()],
            skipped: vec![Skipped { case: "freeze-8g", why: "too large".to_owned() }],
            outcomes: vec![columns::tests::outcome()],
        };
        let text = markdown(&report);
        for line in [
            "- a virtual machine, 2 processors (A Processor), 16.0 GiB of memory, Linux 6.18, \
             transparent huge pages: madvise, images on ext2/ext3",
            "- DMTCP: no --dmtcp PATH",
            "- freeze-8g: too large",
            "- freeze-1g, criu: no space",
            "| case | durable | stored | pages | of a full one's time | CPU time |",
        ] {
            assert!(text.lines().any(|one| one == line), "{line:?} is not in\n{text}");
        }
    }
}

//! `--help` and `--version` of the names of DMTCP, from the table of their options.

use super::options::Program;
use super::table::{Means, OPTIONS, Row};

/// What `--version` says.
pub fn version(program: Program) -> String {
    format!("{} (ckptbpf {}, by the name of DMTCP's)\n", program.name(), env!("CARGO_PKG_VERSION"))
}

/// Whether an option of this meaning is of a section.
type IsOne = fn(Means) -> bool;

/// What `--help` says.
pub fn text(program: Program) -> String {
    let name = program.name();
    let (rest, what) = match program {
        Program::Launch => ("[--] PROGRAM [ARG]...", "Runs a program, and takes checkpoints of it"),
        Program::Restart => ("ckpt_*.dmtcp", "Runs a program again from its last checkpoint"),
        Program::Coordinator => ("[PORT]", "Says what the jobs of a port begin with; it takes no process"),
        Program::Command => ("ORDER...", "Asks the running jobs of a port"),
    };
    let mut text = format!("{what} (ckptbpf, by the name of DMTCP's)\n\nUsage: {name} [OPTIONS] {rest}\n");
    let sections: [(&str, IsOne); 4] = [
        ("Options", is_followed),
        ("Accepted; it is so in any case", |means| means == Means::Had),
        ("Accepted; without effect here", |means| matches!(means, Means::InVain | Means::InVainWith)),
        ("Refused", |means| matches!(means, Means::Refused(_))),
    ];
    for (heading, is_of) in sections {
        let rows = OPTIONS.iter().filter(|row| row.of.contains(&program) && is_of(row.means));
        let line = |row: &Row| format!("  {}{}\n", row.names.join(", "), value(row.means));
        let lines: String = rows.map(line).collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n{heading}:\n{lines}"));
        }
    }
    text
}

fn is_followed(means: Means) -> bool {
    !matches!(means, Means::Had | Means::InVain | Means::InVainWith | Means::Refused(_))
}

/// What comes after the option.
fn value(means: Means) -> &'static str {
    match means {
        Means::Interval => " SECONDS",
        Means::CheckpointDir | Means::RestartDir => " DIR",
        Means::Host => " HOST",
        Means::Port => " PORT",
        Means::HostFile | Means::PortFile => " FILE",
        Means::InVainWith => " VALUE",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::PROGRAMS;
    use super::*;

    #[test]
    fn every_option_is_in_the_help_of_its_program() {
        for program in PROGRAMS {
            let text = text(program);
            for row in OPTIONS.iter().filter(|row| row.of.contains(&program)) {
                assert!(text.contains(&row.names.join(", ")), "{} {:?}", program.name(), row.names);
            }
            assert!(version(program).starts_with(program.name()));
        }
        assert!(text(Program::Launch).contains("  -i, --interval SECONDS\n"));
    }
}

//! `cargo xtask tidy`: the house rules that no compiler knows, each a function from a file to what breaks it.

mod code;
mod links;
mod promises;
mod rules;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cmd;

/// One file of the repository.
pub struct Source {
    /// From the repository's root.
    pub path: String,
    pub text: String,
}

pub fn run() -> Result<()> {
    let sources = sources()?;
    let mut broken = Vec::new();
    for source in &sources {
        for rule in rules::ALL {
            broken.extend(rule(source).into_iter().map(|what| format!("{}:{what}", source.path)));
        }
        broken.extend(links::missing(source).into_iter().map(|what| format!("{}:{what}", source.path)));
    }
    for specification in sources.iter().filter(|source| source.path == "SPECIFICATION.md") {
        let lines = promises::broken(specification, &sources);
        broken.extend(lines.into_iter().map(|what| format!("{}:{what}", specification.path)));
    }
    for readme in sources.iter().filter(|source| source.path == "README.md") {
        let lines = promises::unfounded(readme, &sources);
        broken.extend(lines.into_iter().map(|what| format!("{}:{what}", readme.path)));
    }
    for line in &broken {
        println!("tidy: {line}");
    }
    if !broken.is_empty() {
        bail!("{} house rules are broken", broken.len());
    }
    println!("tidy: {} files keep the house rules", sources.len());
    Ok(())
}

/// Every text file that git knows or would add.
fn sources() -> Result<Vec<Source>> {
    // CI may run as another user than the one who cloned.
    let git = ["-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"];
    let list = cmd::output(Command::new("git").args(git))?;
    let read = |path: &str| {
        let text = fs::read_to_string(Path::new(path)).ok()?;
        Some(Source { path: path.into(), text })
    };
    Ok(list.lines().filter_map(read).collect())
}

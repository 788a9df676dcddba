//! `cargo xtask dist`: what an administrator unpacks, as a folder and as an archive.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd::{self, cargo, step};

const DIST: &str = "target/dist";
const BINARY: &str = "ckptbpf";
/// By which job scripts of DMTCP find it (`ckpt-user/src/cli/compat/options.rs`).
const NAMES: [&str; 4] = ["dmtcp_launch", "dmtcp_restart", "dmtcp_coordinator", "dmtcp_command"];
/// Files and folders of the repository that go with it, those that are there.
const BESIDE: [&str; 7] =
    ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "docs", "slurm", "systemd"];

pub fn run() -> Result<()> {
    step("cargo build --release");
    cmd::run(&mut cargo(&["build", "--release", "--package", "ckpt-user", "--bin", BINARY]))?;
    let name = format!("{BINARY}-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let folder = Path::new(DIST).join(&name);
    step(&folder.display().to_string());
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fill(Path::new("."), &folder)?;
    let archive = format!("{DIST}/{name}.tar.gz");
    cmd::run(Command::new("tar").args(["-C", DIST, "-czf", &archive, &name]))?;
    println!("dist: {} and {archive}", folder.display());
    Ok(())
}

/// Puts everything from the repository into `folder`.
fn fill(repository: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let binary = repository.join("target/release").join(BINARY);
    fs::copy(&binary, folder.join(BINARY)).with_context(|| format!("copying {}", binary.display()))?;
    for name in NAMES {
        symlink(BINARY, folder.join(name)).with_context(|| format!("making the link {name}"))?;
    }
    for name in BESIDE {
        let from = repository.join(name);
        if from.exists() {
            cmd::run(Command::new("cp").arg("-r").arg(&from).arg(folder))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_links_beside_the_binary_and_what_is_there_goes_with_it() {
        let base = std::env::temp_dir().join(format!("ckptbpf-dist-{}", std::process::id()));
        let (repository, folder) = (base.join("repository"), base.join("dist"));
        fs::create_dir_all(repository.join("target/release")).unwrap();
        fs::create_dir(repository.join("docs")).unwrap();
        for file in ["target/release/ckptbpf", "README.md", "docs/cli.md"] {
            fs::write(repository.join(file), file).unwrap();
        }
        fill(&repository, &folder).unwrap();
        for name in NAMES {
            assert_eq!(fs::read_link(folder.join(name)).unwrap(), Path::new("ckptbpf"));
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), "target/release/ckptbpf");
        }
        assert!(folder.join("docs/cli.md").is_file() && !folder.join("slurm").exists());
        fs::remove_dir_all(&base).unwrap();
    }
}

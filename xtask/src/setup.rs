//! `cargo xtask setup`: what the build and the tests need and a bare machine lacks. Nothing missing: nothing done.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, cmd};

/// What building ckptbpf and the demonstration's program needs; a part of [`PACKAGES`].
const TO_BUILD: &[&str] = &["libclang-dev", "gcc", "libc6-dev", "linux-libc-dev"];

/// Debian and Ubuntu packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("libclang-dev", "the userfaultfd crate's bindings"),
    ("gcc", "the programs that the tests checkpoint, and OpenMP"),
    ("libc6-dev", "the same, linked statically"),
    ("linux-libc-dev", "kernel headers for both"),
    ("python3", "checkpointing a Python program"),
    ("python3-numpy", "checkpointing a numpy program"),
    ("redis-tools", "checkpointing a redis server, which this holds without a service"),
    ("nodejs", "checkpointing a JavaScript program"),
    ("gdb", "the test that a debugger can attach"),
    ("sudo", "the tests of launch under sudo"),
    ("sqlite3", "checkpointing a database, with a transaction open"),
    ("slurm-wlm", "jobs of Slurm, which the tests start and end themselves"),
    ("munge", "the same: by which Slurm knows who asks"),
    ("iproute2", "the same: the address of its nodes"),
    ("e2fsprogs", "disks that fail and folders that nothing can be written to"),
];

/// Programs that the soak checkpoints as they are packaged: some 130 MB.
const PROGRAMS: &[(&str, &str)] = &[
    ("r-base-core", "a matrix and random numbers in R"),
    ("openjdk-17-jdk-headless", "a Java program, compiled while it runs"),
    ("gromacs", "molecular dynamics with threads"),
    ("libpython3.11-testsuite", "Python's own tests"),
    ("openmpi-bin", "the test that MPI is refused"),
    ("tmux", "the test that terminals inside terminals are refused"),
    ("screen", "the same"),
    ("gawk", "a program of awk with a pipe"),
    ("mawk", "the same"),
    ("perl", "a program of Perl"),
    ("xz-utils", "a compressor with two threads"),
    ("make", "a build of several processes"),
    ("procps", "pgrep, by which tests find programs"),
];

/// What `cargo xtask vm-test` boots other kernels with.
const VIRTUAL_MACHINES: &[(&str, &str)] = &[
    ("qemu-system-x86", "virtual machines with other kernels"),
    ("seabios", "the same: what such a machine starts with"),
    ("debian-archive-keyring", "the kernels' packages, which are signed"),
    ("e2fsprogs", "the disks of virtual machines"),
    ("iproute2", "the network between two of them"),
    ("python3", "checkpointing a Python program in them"),
];

/// What shows them folders of this machine, where that is no part of QEMU's packages.
const SHARED_FOLDERS: (&str, &str) = ("virtiofsd", "virtual machines that see this machine's programs");

/// `apt-get …`, as root, that starts no service (policy-rc.d of invoke-rc.d(8)): packages are here for their programs.
const WITHOUT_SERVICES: &str = r#"policy=/usr/sbin/policy-rc.d made=
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=1; }
trap '[ -z "$made" ] || rm -f "$policy"' EXIT
trap 'exit 1' HUP INT TERM
apt-get "$@"
"#;

#[derive(clap::Args, Default)]
pub struct Args {
    /// Only say which packages are missing; fails if one is
    #[arg(long)]
    check: bool,
}

pub fn run(args: &Args) -> Result<()> {
    packages(PACKAGES, args.check)?;
    if args.check {
        return Ok(());
    }
    build_ebpf::install().context("setting up the toolchain of the eBPF programs")
}

/// Only what building needs. The eBPF object is committed: no toolchain for it.
pub fn to_build() -> Result<()> {
    packages(&needed_to_build(), false)
}

fn needed_to_build() -> Vec<(&'static str, &'static str)> {
    PACKAGES.iter().filter(|(name, _)| TO_BUILD.contains(name)).copied().collect()
}

/// What the soak runs beside that.
pub fn programs() -> Result<()> {
    packages(PROGRAMS, false)
}

/// What other kernels are tried in, and what builds what they run.
pub fn virtual_machines() -> Result<()> {
    packages(&needed_by_virtual_machines(), false)
}

/// What shows virtual machines folders of this machine, where there is a package of that name.
pub fn shared_folders() -> Result<()> {
    let (name, _) = SHARED_FOLDERS;
    if !cmd::succeeds(Command::new("apt-cache").args(["show", name])) {
        println!("setup: there is no package {name} here: what needs it is skipped");
        return Ok(());
    }
    packages(&[SHARED_FOLDERS], false)
}

fn needed_by_virtual_machines() -> Vec<(&'static str, &'static str)> {
    [needed_to_build(), VIRTUAL_MACHINES.to_vec()].concat()
}

fn packages(wanted: &[(&str, &str)], only_check: bool) -> Result<()> {
    if !cmd::succeeds(Command::new("dpkg-query").arg("--version")) {
        println!("setup: no dpkg here; needed are, by their Debian names: {}", names(wanted));
        return Ok(());
    }
    let missing: Vec<_> = wanted.iter().filter(|(name, _)| !is_installed(name)).copied().collect();
    if missing.is_empty() {
        println!("setup: no package is missing");
        return Ok(());
    }
    for (name, purpose) in &missing {
        println!("setup: {name} is missing: {purpose}");
    }
    if only_check {
        bail!("missing: {}", names(&missing));
    }
    install(&missing)
}

fn names(packages: &[(&str, &str)]) -> String {
    packages.iter().map(|package| package.0).collect::<Vec<_>>().join(" ")
}

fn is_installed(package: &str) -> bool {
    let query = cmd::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]));
    query.is_ok_and(|status| status == "installed")
}

fn install(missing: &[(&str, &str)]) -> Result<()> {
    let is_root = cmd::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !is_root && !cmd::succeeds(Command::new("sudo").args(["-n", "true"])) {
        bail!(
            "not root: run `sudo apt-get install --no-install-recommends {}` and then this again",
            names(missing)
        );
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new(if is_root { "sh" } else { "sudo" });
        if !is_root {
            command.args(["-n", "DEBIAN_FRONTEND=noninteractive", "sh"]);
        }
        command
            .args(["-c", WITHOUT_SERVICES, "apt-get"])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"])
            .args(args);
        command
    };
    println!("setup: apt-get install {}", names(missing));
    cmd::run(&mut apt(&["update"]))?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    cmd::run(install.args(missing.iter().map(|package| package.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_builds_is_a_part_of_what_is_installed() {
        assert_eq!(needed_to_build().len(), TO_BUILD.len());
    }

    #[test]
    fn virtual_machines_are_to_be_had_where_nothing_is_installed() {
        let needed: Vec<&str> = needed_by_virtual_machines().iter().map(|package| package.0).collect();
        let disks_and_signatures = ["qemu-system-x86", "e2fsprogs", "debian-archive-keyring"];
        for package in TO_BUILD.iter().chain(&disks_and_signatures) {
            assert!(needed.contains(package), "{package}");
        }
    }
}

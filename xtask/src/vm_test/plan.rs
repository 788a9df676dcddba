//! Builds what is to run in the virtual machines, and lists it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::kernels::{Kernel, Matrix, Suite};
use super::share;
use crate::cmd::{self, cargo};

/// The first process, which is linked statically and for this target.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What was built, and what was fetched.
#[derive(Clone)]
pub struct Programs {
    pub init: PathBuf,
    /// What is called so in the machines.
    pub ckptbpf: PathBuf,
    /// The bug that it is told to have, where it is one with bugs.
    pub plant: Option<String>,
    pub busybox: PathBuf,
    /// Where cargo puts what it builds: `target/release`.
    pub release: PathBuf,
    /// Test programs by package and file of tests.
    pub tests: BTreeMap<(String, String), PathBuf>,
}

/// What one machine runs, and what it does not.
#[derive(Default)]
pub struct Plan {
    pub tests: Vec<Test>,
    /// Names and reasons.
    pub skipped: Vec<(String, String)>,
    pub shell: bool,
}

pub struct Test {
    /// Two words: where it comes from, and what it is called there.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// With this machine's programs and libraries.
    pub on_host: bool,
}

impl Test {
    /// A test of a program of tests.
    pub fn function(name: &str, program: &Path, function: &str) -> Self {
        let arguments = ["--exact", function, "--nocapture"].map(str::to_owned).to_vec();
        Self { name: name.into(), program: program.into(), arguments, on_host: false }
    }
}

/// `busybox`: that of the machines.
pub fn build(busybox: PathBuf) -> Result<Programs> {
    let mut init = cargo(&["build", "--release", "-p", "vm-init", "--target", TARGET]);
    let built = artifacts(init.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let init =
        built.into_iter().find_map(|artifact| artifact.executable).context("cargo has built no vm-init")?;
    let tests = &["test", "--release", "--no-run", "-p", "ckpt-tests", "-p", "ckpt-user", "--tests"];
    let mut programs = BTreeMap::new();
    for artifact in artifacts(&mut cargo(tests))? {
        let package = artifact.package().to_owned();
        if let (true, Some(executable)) = (artifact.target.is_test(), artifact.executable) {
            programs.insert((package, artifact.target.name), executable);
        }
    }
    let some = programs.values().next().context("cargo has built no tests")?;
    let release = some.ancestors().nth(2).context("where cargo has put the tests")?.to_owned();
    // Compiles all that are not.
    let victims =
        programs.get(&("ckpt-tests".into(), "victims".into())).context("no tests of the victims")?;
    cmd::run(Command::new(victims).args(["--exact", "all_are_compiled"]).current_dir("tests"))?;
    Ok(Programs { init, ckptbpf: release.join("ckptbpf"), plant: None, busybox, release, tests: programs })
}

/// One line of `cargo --message-format=json`.
#[derive(Deserialize)]
struct Artifact {
    #[serde(default)]
    package_id: String,
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Target,
}

#[derive(Deserialize, Default)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Target {
    fn is_test(&self) -> bool {
        self.kind.iter().any(|kind| kind == "test")
    }
}

impl Artifact {
    /// Its folder's name, or what stands behind the number sign: both forms are in use.
    fn package(&self) -> &str {
        let path = self.package_id.split('#').next().unwrap_or_default();
        match path.rsplit('/').next() {
            Some("tests") => "ckpt-tests",
            folder => folder.unwrap_or_default(),
        }
    }
}

fn artifacts(command: &mut Command) -> Result<Vec<Artifact>> {
    let printed = cmd::output(command.arg("--message-format=json-render-diagnostics"))?;
    let parse = |line: &str| serde_json::from_str(line).context("what cargo says of what it has built");
    let lines = printed.lines().filter(|line| line.contains("\"compiler-artifact\""));
    lines.map(parse).collect()
}

/// What each kernel's machine runs.
pub fn tests(matrix: &Matrix, programs: &Programs, filter: &[String]) -> Result<Vec<Plan>> {
    let mut plans: Vec<Plan> = matrix.kernels.iter().map(|_| Plan::default()).collect();
    for suite in &matrix.suites {
        let key = (suite.package.clone(), suite.binary.clone());
        let program = programs.tests.get(&key).with_context(|| format!("no tests {}/{}", key.0, key.1))?;
        for function in functions(suite, program)? {
            let name = format!("{} {function}", suite.binary);
            if is_wanted(filter, &name) {
                for (kernel, plan) in matrix.kernels.iter().zip(&mut plans) {
                    plan.add(kernel, suite, &name, program, &function);
                }
            }
        }
    }
    // What they mount stays.
    plans.iter_mut().for_each(|plan| plan.tests.sort_by_key(|test| test.on_host));
    Ok(plans)
}

/// Whether a name has one of the parts; any name if there is none.
pub fn is_wanted(filter: &[String], name: &str) -> bool {
    filter.is_empty() || filter.iter().any(|part| name.contains(part))
}

impl Plan {
    pub fn shell() -> Self {
        Self { shell: true, ..Self::default() }
    }

    fn add(&mut self, kernel: &Kernel, suite: &Suite, name: &str, program: &Path, function: &str) {
        match kernel.skips(suite, function) {
            Some(reason) => self.skipped.push((name.into(), reason)),
            None if suite.on_host && !share::is_possible() => {
                self.skipped.push((name.into(), "there is no virtiofsd here".into()));
            }
            None => {
                let test = Test::function(name, program, function);
                self.tests.push(Test { on_host: suite.on_host, ..test });
            }
        }
    }

    /// All that are run or skipped.
    pub fn names(&self) -> Vec<&str> {
        let skipped = self.skipped.iter().map(|(name, _)| name.as_str());
        self.tests.iter().map(|test| test.name.as_str()).chain(skipped).collect()
    }
}

/// The suite's tests, by the names that the program itself knows.
fn functions(suite: &Suite, program: &Path) -> Result<Vec<String>> {
    let listed = cmd::output(Command::new(program).args(["--list", "--format", "terse"]))?;
    let known: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let is_wanted =
        |name: &str, wanted: &str| name == wanted || (wanted.ends_with("::") && name.starts_with(wanted));
    for wanted in &suite.tests {
        if !known.iter().any(|name| is_wanted(name, wanted)) {
            bail!("vm-test/kernels.toml names {wanted}, which {} has not", suite.binary);
        }
    }
    let all = suite.tests.is_empty();
    let chosen = known.iter().filter(|name| all || suite.tests.iter().any(|wanted| is_wanted(name, wanted)));
    Ok(chosen.map(|name| (*name).to_owned()).collect())
}

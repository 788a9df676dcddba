//! A command to run in the box.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::wire::Order;

/// Variables of the surroundings that would make a test depend on them.
const UNSET: [&str; 5] = ["XDG_RUNTIME_DIR", "TMPDIR", "CKPTBPF_DIR", "LD_LIBRARY_PATH", "PYTHONPATH"];

/// What to run: program, arguments, environment, working directory and standard input.
///
/// Unless said otherwise: the box's directory, /dev/null, and the test's environment without what would make it
/// depend on the person who runs it.
#[derive(Debug, Clone)]
pub struct Cmd {
    argv: Vec<String>,
    env: Vec<(String, Option<String>)>,
    cwd: Option<PathBuf>,
    stdin: PathBuf,
    stdout: Option<PathBuf>,
}

impl Cmd {
    /// A program by path or by name.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut env: Vec<_> = UNSET.iter().map(|name| ((*name).to_owned(), None)).collect();
        env.push(("LC_ALL".into(), Some("C.UTF-8".into())));
        let cmd = Self { argv: Vec::new(), env, cwd: None, stdin: "/dev/null".into(), stdout: None };
        cmd.arg(program)
    }

    /// A line for bash.
    pub fn sh(line: &str) -> Self {
        Self::new("/bin/bash").arg("-c").arg(line)
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_str().expect("test arguments are UTF-8").to_owned());
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// The same with each word replaced.
    #[must_use]
    pub fn each(mut self, replaced: impl Fn(&str) -> String) -> Self {
        self.argv.iter_mut().for_each(|word| *word = replaced(word));
        self
    }

    /// All of another command's words and variables: the program that this one is to run.
    #[must_use]
    pub fn program(mut self, other: &Self) -> Self {
        self.env.extend(other.env.iter().cloned());
        self.args(&other.argv)
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    #[must_use]
    pub fn cwd(mut self, folder: &Path) -> Self {
        self.cwd = Some(folder.into());
        self
    }

    #[must_use]
    pub fn stdin(mut self, file: &Path) -> Self {
        self.stdin = file.into();
        self
    }

    /// Writes standard output to this file, cut to nothing first, rather than to one of the box's.
    #[must_use]
    pub fn stdout(mut self, file: &Path) -> Self {
        self.stdout = Some(file.into());
        self
    }

    pub(super) fn shown(&self) -> String {
        self.argv.join(" ")
    }

    pub(super) fn stdout_file(&self, serial: u64, io: &Path) -> PathBuf {
        self.stdout.clone().unwrap_or_else(|| io.join(format!("{serial}.out")))
    }

    pub(super) fn order(&self, serial: u64, dir: &Path, io: &Path) -> Order {
        Order {
            serial,
            argv: self.argv.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone().unwrap_or_else(|| dir.into()),
            stdin: self.stdin.clone(),
            stdout: self.stdout_file(serial, io),
            stderr: io.join(format!("{serial}.err")),
        }
    }
}

/// A line for bash.
impl From<&str> for Cmd {
    fn from(line: &str) -> Self {
        Self::sh(line)
    }
}

impl From<&Cmd> for Cmd {
    fn from(cmd: &Cmd) -> Self {
        cmd.clone()
    }
}

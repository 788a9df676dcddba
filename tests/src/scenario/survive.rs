//! The scenario that every program has to survive.

use std::time::Duration;

use super::{Covered, Daemon, Expected, Job, MODES, PATIENCE, Tool, held, let_go, verb};
use crate::sandbox::{Cmd, Sandbox, let_pass};
use crate::{Random, assert_same};

/// The most rounds that there are, where each takes long: an emulated processor (`cargo xtask vm-test`).
const MOST_ROUNDS: &str = "CKPTBPF_ROUNDS";

/// A program and how it is tried.
pub struct Survival<'a> {
    pub name: &'a str,
    pub program: Cmd,
    /// A file that it writes in its working directory.
    pub file: Option<&'a str>,
    pub rounds: u64,
    /// Seconds between checkpoints.
    pub interval: &'a str,
    /// The kill comes this long, at most, after a checkpoint.
    pub within: Duration,
    /// Of `launch`, besides the interval.
    pub options: &'a [&'a str],
    pub tool: Tool,
    /// By an ordinary user, without any rights of root.
    pub by_user: bool,
    /// Whom a daemon serves.
    pub by_daemon: bool,
    /// Who can have no namespaces: each restart is beside all others.
    pub is_covered: bool,
}

impl<'a> Survival<'a> {
    /// Five rounds, a checkpoint every 0.3 s.
    pub fn of(name: &'a str, program: Cmd) -> Self {
        let (interval, within) = ("0.3", Duration::from_millis(300));
        let (tool, by_user, by_daemon, is_covered) = (Tool::default(), false, false, false);
        Self {
            name,
            program,
            file: None,
            rounds: 5,
            interval,
            within,
            options: &[],
            tool,
            by_user,
            by_daemon,
            is_covered,
        }
    }

    /// With a file that must be as after an undisturbed run too.
    #[must_use]
    pub fn writing(self, file: &'a str) -> Self {
        Self { file: Some(file), ..self }
    }
}

/// Checkpoint, kill -9 of program and ckptbpf at a random moment, restart, in each mode by turns, some rounds long:
/// then the program ends with 0, and its output and its file are those of an undisturbed run.
///
/// The program is one that can be [`held`]: it ends after the last round, however slow the rounds were.
pub fn survive(survival: &Survival) {
    let Survival { name, program, file, .. } = survival;
    let sandbox = Sandbox::new(name);
    let covered = survival.is_covered.then(|| Covered::of(&sandbox));
    let mut random = Random::for_test(name);
    let expected = Expected::of(&sandbox, program, *file);
    expected.skip_what_cannot_be(name);
    let options = [&["-i", survival.interval], survival.options].concat();
    let mut program = held(&sandbox, program.clone());
    let daemon = survival.by_daemon.then(|| Daemon::begin(&sandbox, &[]));
    let tool = survival.tool.clone();
    let tool = if survival.by_user { tool.by_user(&sandbox) } else { tool };
    let tool = daemon.iter().fold(tool, |tool, daemon| daemon.serves(tool));
    if let Some(user) = &tool.user {
        program = user.reaches(&program);
    }
    let folder = tool.folder(&sandbox);
    let mut job = Job::launch_by(&sandbox, tool, folder.join("images"), &options, &program);
    let most = std::env::var(MOST_ROUNDS).ok().and_then(|most| most.parse().ok());
    let rounds = most.map_or(survival.rounds, |most: u64| survival.rounds.min(most));
    for (round, mode) in (0..rounds).zip(MODES.iter().cycle()) {
        let next = if round == 0 { 1 } else { job.newest() + 1 };
        job.wait_for_checkpoint(next);
        let_pass(random.moment(survival.within));
        assert!(!job.running().has_ended(), "{name}: the program ended in round {round}: it cannot be held");
        job.kill_all();
        sandbox.run(verb("verify", [job.dir()])).success();
        job.restart(*mode, survival.options);
        if survival.is_covered {
            job.program();
            let said = job.running().stderr();
            assert!(said.contains("the program runs beside all others"), "{name}: {said}");
        }
    }
    let_go(&sandbox);
    job.wait(PATIENCE * 2).success();
    assert_same(&format!("{name}: standard output"), &expected.stdout, &job.stdout());
    if let Some(file) = file {
        let written = std::fs::read(folder.join(file)).unwrap_or_default();
        assert_same(&format!("{name}: {file}"), &expected.file, &written);
    }
    if let Some(daemon) = daemon {
        let log = daemon.log();
        daemon.end();
        assert!(log.contains("worker"), "{name}: the daemon had nothing to do: {log}");
    }
    covered.into_iter().for_each(Covered::end);
}

//! Restarts by a daemon for users who can have no namespaces: beside all others, under the program's own ids.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::scenario::{
    Covered, Daemon, Holder, Survival, Tool, has_another_worker, held, let_go, survive, the_worker,
};
use ckpt_tests::user::User;
use ckpt_tests::{Cmd, Expected, Job, Mode, Process, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Every other restart is asked to be lazy, which none is.
fn survives(name: &str, program: Cmd, file: Option<&str>) {
    let name = format!("beside_{name}");
    let survival = Survival::of(&name, program);
    survive(&Survival { file, by_user: true, by_daemon: true, is_covered: true, ..survival });
}

#[test]
fn count_beside_others() {
    survives("count", victim_cmd("count_static").args(["f", "1200", "3000"]), Some("f"));
}

#[test]
fn count_in_python_beside_others() {
    survives("python", victim_cmd("count.py").args(["f", "1100", "3000"]), Some("f"));
}

/// Each of its processes has executed another file.
#[test]
fn a_shell_pipeline_beside_others() {
    survives("pipeline", victim_cmd("pipeline.sh").args(["800", "0.004"]), None);
}

#[test]
fn sixteen_threads_beside_others() {
    survives("threads", victim_cmd("threads16").args(["1200", "3000"]), None);
}

#[test]
fn a_tree_with_an_ended_child_beside_others() {
    survives("forktree", victim_cmd("forktree").args(["80", "50000", "zombie"]), None);
}

/// A user's job, of a program that looks at its ids and clocks at each step, and those who have to do with it.
struct Travelling<'b> {
    sandbox: &'b Sandbox,
    job: Job<'b>,
    user: User,
    tool: Tool,
    program: i32,
}

const STEPS: u32 = 3000;

impl<'b> Travelling<'b> {
    fn begin(sandbox: &'b Sandbox, daemon: &Daemon<'b>) -> Self {
        let tool = daemon.serves(Tool::of_user(sandbox));
        let user = tool.user.clone().unwrap();
        let steps = STEPS.to_string();
        let program = user.reaches(&held(sandbox, victim_cmd("travel").args(["steps", &steps, "2000"])));
        let job = Job::launch_by(sandbox, tool.clone(), user.home().join("images"), &[], &program);
        job.running().wait_for_output("\n50\n", SOON);
        job.checkpoint();
        let program = job.program();
        Self { sandbox, job, user, tool, program }
    }

    fn steps(&self) -> Vec<u8> {
        std::fs::read(self.user.home().join("steps")).unwrap()
    }

    /// A restart that is refused, which changes no file; what it says.
    fn refused(&self) -> String {
        let before = self.steps();
        let said = self.sandbox.run(self.tool.verb("restart", ["--take-over", "images"]));
        let said = said.expect_code(125).stderr_text();
        assert_same("the file", &before, &self.steps());
        said
    }

    /// The program goes on to its end, and has done what it does undisturbed.
    fn ends_as_expected(mut self) {
        let_go(self.sandbox);
        self.job.wait(SOON).success();
        let steps: String = (1..=STEPS).map(|step| format!("{step}\n")).collect();
        assert_same("standard output", steps.as_bytes(), &self.job.stdout());
        assert_same("the file", steps.as_bytes(), &self.steps());
    }
}

fn line_of(sandbox: &Sandbox, pid: i32, name: &str) -> String {
    let status = sandbox.see(Path::new(&format!("/proc/{pid}/status")));
    let status = std::fs::read_to_string(status).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

fn link_of(sandbox: &Sandbox, pid: i32, name: &str) -> PathBuf {
    std::fs::read_link(sandbox.see(Path::new(&format!("/proc/{pid}/{name}")))).unwrap()
}

/// It has its id, its file, the front for a parent and nothing that the user has not; the next checkpoint is a delta, and another
/// worker takes the place of one that is killed.
#[test]
fn a_program_beside_others_is_what_it_was() {
    let sandbox = Sandbox::new("beside_same");
    let covered = Covered::of(&sandbox);
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut travelling = Travelling::begin(&sandbox, &daemon);
    let program = travelling.program;
    let checked = sandbox.run(travelling.tool.verb("check", ["--json"])).success().stdout_text();
    assert!(checked.contains("the daemon sees to which come next"), "{checked}");
    let file = link_of(&sandbox, program, "exe");
    let launched = travelling.job.running().pid;
    let namespaces = ["user", "pid", "mnt", "net"].map(|name| format!("ns/{name}"));
    let of_launch = namespaces
        .clone()
        .map(|name| link_of(&sandbox, program, &name) == link_of(&sandbox, launched, &name));
    assert_eq!(of_launch, [true; 4]);
    for _ in 0..2 {
        travelling.job.kill_all();
        travelling.job.restart(Mode::Lazy, &["--json"]);
        assert_eq!(travelling.job.program(), program);
        let said = travelling.job.running().stderr();
        for words in [
            "users can have no namespaces here",
            "its clocks (CLOCK_MONOTONIC) have gone on for",
            "a restart that is asked to be lazy is none: its guardian",
            "\"mode\":\"eager\"",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let front = travelling.job.running().pid;
        let all = sandbox.ps();
        let own = all.iter().find(|one: &&Process| one.pid == program).unwrap();
        assert_eq!((own.parent, own.comm.as_str()), (front, "travel"));
        assert!(all.iter().all(|one| one.comm != "ckptbpf-init"), "{all:?}");
        assert_eq!(link_of(&sandbox, program, "exe"), file);
        for name in &namespaces {
            assert_eq!(link_of(&sandbox, program, name), link_of(&sandbox, front, name), "{name}");
        }
        assert_eq!(link_of(&sandbox, program, "ns/time"), link_of(&sandbox, front, "ns/time"));
        assert_eq!(line_of(&sandbox, program, "CapEff:"), "0000000000000000");
        assert_eq!(line_of(&sandbox, program, "TracerPid:"), "0");
        assert_eq!(travelling.job.checkpoint().kind, "delta");
    }
    has_another_worker(&sandbox, &travelling.job, the_worker(&sandbox, &daemon), 1);
    assert_eq!(travelling.job.program(), program);
    // What that has checkpointed can be restarted from.
    travelling.job.kill_all();
    travelling.job.restart(Mode::Eager, &[]);
    assert_eq!(travelling.job.program(), program);
    travelling.ends_as_expected();
    daemon.end();
    covered.end();
}

/// One that somebody has is named, and nothing is done; so is one that the kernel gives to nobody by itself.
#[test]
fn an_id_that_somebody_has_is_named() {
    let sandbox = Sandbox::new("beside_taken");
    let covered = Covered::of(&sandbox);
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut travelling = Travelling::begin(&sandbox, &daemon);
    travelling.job.kill_all();
    let holder = Holder::of(&sandbox, travelling.program);
    let said = travelling.refused();
    let id = travelling.program;
    assert!(said.contains(&format!("process id {id} is in use (sleep)")), "{said}");
    assert!(said.contains("user.max_user_namespaces"), "{said}");
    holder.end();
    travelling.job.restart(Mode::Eager, &[]);
    assert_eq!(travelling.job.program(), id);
    travelling.ends_as_expected();
    sandbox.run("echo 99 > /proc/sys/kernel/ns_last_pid").success();
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&victim_cmd("count_static").args(["numbers", "100000", "2000"]));
    let mut job = Job::launch_by(&sandbox, tool.clone(), user.home().join("low"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    assert!(job.program() < 300);
    job.checkpoint();
    job.kill_all();
    let said = sandbox.run(tool.verb("restart", ["low"])).expect_code(125).stderr_text();
    assert!(said.contains("is below 300"), "{said}");
    daemon.end();
    covered.end();
}

/// Others fork all the time: it is tried again until the ids are had.
#[test]
fn ids_are_had_beside_others_who_fork() {
    let sandbox = Sandbox::new("beside_forks");
    let covered = Covered::of(&sandbox);
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("threads16").args(["1200", "3000"]);
    let expected = Expected::of(&sandbox, &program, None);
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    job.checkpoint();
    job.kill_all();
    let forks = [0; 2].map(|_| sandbox.spawn(Cmd::sh("while :; do /bin/true; done")));
    job.restart(Mode::Eager, &[]);
    job.program();
    forks.into_iter().for_each(|fork| {
        fork.kill_group(Signal::SIGKILL);
        fork.wait(SOON);
    });
    job.checkpoint();
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    daemon.end();
    covered.end();
}

/// Clocks of another boot jump where that is accepted, and none ever goes back.
#[test]
fn clocks_beside_others() {
    let sandbox = Sandbox::new("beside_clocks");
    let covered = Covered::of(&sandbox);
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut travelling = Travelling::begin(&sandbox, &daemon);
    travelling.job.kill_all();
    let rebooted = "echo another > /tmp/boot; mount --bind /tmp/boot /proc/sys/kernel/random/boot_id";
    sandbox.run(rebooted).success();
    let said = travelling.refused();
    assert!(said.contains("those of another boot or machine") && said.contains("--clocks jump"), "{said}");
    let run = travelling.tool.verb("run", ["-d", "images", "--take-over", "--clocks", "go-on", "./travel"]);
    let said = sandbox.run(run).expect_code(125).stderr_text();
    assert!(said.contains("--clocks jump"), "{said}");
    travelling.job.restart(Mode::Eager, &["--take-over", "--clocks", "jump"]);
    assert_eq!(travelling.job.program(), travelling.program);
    let said = travelling.job.running().stderr();
    assert!(said.contains("its clocks (CLOCK_MONOTONIC) have jumped by"), "{said}");
    let (user, tool) = (travelling.user.clone(), travelling.tool.clone());
    travelling.ends_as_expected();
    sandbox.run("umount /proc/sys/kernel/random/boot_id").success();
    // A machine that has been up for longer.
    let program = user.reaches(&victim_cmd("travel").args(["later", "100000", "2000"]));
    let ends = ["-d", "later.images", "-i", "0.2", "--exit-after-ckpt", "--"];
    let up = ["--fork", "--time", "--monotonic", "100000", "--boottime", "100000"];
    let launch = Cmd::new("unshare").args(up).program(&tool.verb("launch", ends).program(&program));
    sandbox.spawn(launch.cwd(user.home())).wait(SOON).expect_code(85);
    for clocks in ["go-on", "jump"] {
        let restart = tool.verb("restart", ["--clocks", clocks, "later.images"]);
        let said = sandbox.run(restart).expect_code(125).stderr_text();
        assert!(said.contains("its clocks (CLOCK_MONOTONIC) would go back by"), "{said}");
    }
    daemon.end();
    covered.end();
}

//! What the workers of one user may take of the daemon, where their groups can be made.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool, held, supervised};
use ckpt_tests::user::{OTHER, UID, User};
use ckpt_tests::{Cmd, Job, Sandbox, skip, victim_cmd};

const SOON: Duration = Duration::from_secs(30);
const MEMORY: u64 = 96 << 20;
const TASKS: u32 = 200;
const LIMITS: [&str; 4] = ["--worker-memory", "96M", "--worker-tasks", "200"];

/// One whose workers have limits, of tasks too where that can be here, and the controllers of these; none where there can be none.
fn limiting<'b>(sandbox: &'b Sandbox, test: &str) -> Option<(Daemon<'b>, &'static [&'static str])> {
    for (limits, controllers) in [(&LIMITS[..], &["memory", "pids"][..]), (&LIMITS[..2], &["memory"])] {
        let daemon = Daemon::begin(sandbox, limits);
        let log = daemon.log();
        let Some((_, why)) = log.split_once("workers have no limits of their own: ") else {
            return Some((daemon, controllers));
        };
        let why = why.lines().next().unwrap();
        // Without tasks there is still memory to be tried.
        match controllers {
            [_] => skip::skip(test, why),
            _ => skip::skip_part(&format!("{test} ({})", controllers.join(", ")), why),
        }
        daemon.end();
    }
    None
}

/// A job that counts, for this user, until it is ended.
fn counting<'b>(sandbox: &'b Sandbox, tool: &Tool, user: &User) -> Job<'b> {
    let program = held(sandbox, victim_cmd("count_static").args(["numbers", "30000", "2000"]));
    let program = user.reaches(&program);
    let job = Job::launch_by(sandbox, tool.clone(), user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    job
}

/// A user's worker.
fn worker_of(sandbox: &Sandbox, daemon: &Daemon<'_>, uid: u32) -> i32 {
    let is_of = |pid: i32| {
        let status = sandbox.see(format!("/proc/{pid}/status").as_ref());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        status.lines().any(|line| line.starts_with(&format!("Uid:\t{uid}\t")))
    };
    let all = sandbox.ps();
    let mut workers = all.iter().filter(|one| one.parent == daemon.pid() && is_of(one.pid));
    workers.next().unwrap_or_else(|| panic!("no worker of {uid}: {}", daemon.log())).pid
}

/// The control group that a process is in for a controller, whichever version has it.
fn group_of(sandbox: &Sandbox, pid: i32, controller: &str) -> PathBuf {
    let groups = std::fs::read_to_string(sandbox.see(format!("/proc/{pid}/cgroup").as_ref())).unwrap();
    let first = Path::new("/sys/fs/cgroup").join(controller);
    let (above, wanted) =
        if first.is_dir() { (first, controller) } else { (PathBuf::from("/sys/fs/cgroup"), "") };
    let name = |line: &str| {
        let (controllers, name) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|one| one == wanted).then(|| name.trim_start_matches('/').to_owned())
    };
    above.join(groups.lines().find_map(name).expect("a group"))
}

/// The first of these that there is.
fn value(group: &Path, files: &[&str]) -> String {
    let mut values = files.iter().filter_map(|file| std::fs::read_to_string(group.join(file)).ok());
    values.next().expect("a limit").trim().to_owned()
}

/// The workers of each user are in a group of that user's, with these limits, and one who reaches them costs no other user anything.
#[test]
fn who_has_used_up_their_memory_has_used_up_nobody_else_s() {
    const NAME: &str = "who_has_used_up_their_memory_has_used_up_nobody_else_s";
    let sandbox = Sandbox::new("daemon_limits");
    let Some((daemon, controllers)) = limiting(&sandbox, NAME) else { return };
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let other = user.other();
    let others = Tool { user: Some(other.clone()), ..tool.clone() };
    let mut spared = counting(&sandbox, &others, &other);
    spared.checkpoint();
    // Memory of a worker's that no reclaim gets back: files of a tmpfs.
    let images = Path::new("/dev/shm/images");
    sandbox.run(format!("install -d -o {UID} -g {UID} -m 700 {}", images.display()).as_str()).success();
    let line = "import os, select\n\
        held = os.urandom(192 << 20)\n\
        print('made', flush=True)\n\
        while True:\n    \
            select.select([], [], [], 0.05)\n";
    let program = Cmd::new("/usr/bin/python3").args(["-c", line]);
    let options = ["-i", "0", "--compress", "none"];
    let mut greedy = Job::launch_by(&sandbox, tool.clone(), images.join("greedy"), &options, &program);
    greedy.running().wait_for_output("made", SOON);
    let root = greedy.program();
    let mut groups = Vec::new();
    for uid in [UID, OTHER] {
        let worker = worker_of(&sandbox, &daemon, uid);
        for controller in controllers {
            let group = group_of(&sandbox, worker, controller);
            assert!(group.to_string_lossy().ends_with(&format!("-u{uid}")), "{}", group.display());
            let (files, limit): (&[&str], u64) = match *controller {
                "memory" => (&["memory.max", "memory.limit_in_bytes"], MEMORY),
                _ => (&["pids.max"], TASKS.into()),
            };
            assert_eq!(value(&group, files), limit.to_string());
            groups.push(group);
        }
    }
    assert_ne!(greedy.try_checkpoint().code(), 0);
    let running = greedy.running();
    let said =
        "the daemon's worker was killed for lack of memory (--worker-memory of the daemon's): another one";
    sandbox.wait_for("word of it", SOON, || running.stderr().contains(said));
    let said = format!(
        "the daemon's worker was killed for lack of memory (--worker-memory of the daemon's): there are no \
        more checkpoints; for more: ckptbpf attach {root}"
    );
    // Those that take its place are killed for it, too.
    sandbox.wait_for("the last word of it", SOON * 2, || {
        let is_said = running.stderr().contains(&said);
        if !is_said && supervised(&sandbox, greedy.dir()).is_some() {
            greedy.try_checkpoint();
        }
        is_said
    });
    assert!(!running.has_ended(), "the program goes on");
    spared.checkpoint();
    spared.checkpoint_and_end();
    greedy.kill_all();
    sandbox.wait_for("the groups to be gone", SOON, || groups.iter().all(|group| !group.exists()));
    sandbox.run(format!("rm -r {}", images.display()).as_str()).success();
    let log = daemon.end().stderr_text();
    assert!(log.contains("of its workers were killed for lack of memory"), "{log}");
}

/// What a daemon that was killed has left is the next one's to take away.
#[test]
fn groups_of_a_daemon_that_was_killed_go_with_the_next_one() {
    const NAME: &str = "groups_of_a_daemon_that_was_killed_go_with_the_next_one";
    let sandbox = Sandbox::new("daemon_limits_left");
    let Some((daemon, controllers)) = limiting(&sandbox, NAME) else { return };
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let mut job = counting(&sandbox, &tool, &user);
    let worker = worker_of(&sandbox, &daemon, UID);
    let groups: Vec<PathBuf> = controllers.iter().map(|one| group_of(&sandbox, worker, one)).collect();
    let limits = &LIMITS[..2 * controllers.len()];
    daemon.kill();
    // A worker is in it: it stays, whoever begins.
    let next = Daemon::begin(&sandbox, limits);
    assert!(groups.iter().all(|group| group.exists()));
    next.end();
    job.checkpoint();
    job.kill_all();
    let next = Daemon::begin(&sandbox, limits);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}: {}", next.log());
    next.end();
}

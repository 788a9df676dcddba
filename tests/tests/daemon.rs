//! What a daemon of root's does for users without root: who is what, and what the death of each of them is to the others.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{
    Counting, Daemon, Survival, Tool, fills_done, held, let_go, survive, the_worker, workers,
};
use ckpt_tests::user::UID;
use ckpt_tests::{Cmd, Expected, Job, Mode, Process, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn survives(name: &str, program: Cmd, file: Option<&str>) {
    let name = format!("daemon_{name}");
    survive(&Survival { file, by_user: true, by_daemon: true, ..Survival::of(&name, program) });
}

#[test]
fn count_by_daemon() {
    survives("count", victim_cmd("count_static").args(["f", "1200", "3000"]), Some("f"));
}

#[test]
fn a_shell_pipeline_by_daemon() {
    survives("pipeline", victim_cmd("pipeline.sh").args(["800", "0.004"]), None);
}

#[test]
fn sixteen_threads_by_daemon() {
    survives("threads", victim_cmd("threads16").args(["1200", "3000"]), None);
}

/// Waits until the daemon counts no job of the user's, who asks it: whoever does is told of their own.
fn wait_for_no_job(sandbox: &Sandbox, tool: &Tool) {
    let check = tool.verb("daemon", ["--check"]);
    sandbox.wait_for("the daemon to count no job", SOON, || {
        sandbox.run(check.clone()).success().stdout_text().contains(": 0 of ")
    });
}

fn line_of(sandbox: &Sandbox, pid: i32, name: &str) -> String {
    let status = sandbox.see(format!("/proc/{pid}/status").as_ref());
    let status = std::fs::read_to_string(status).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

/// The program is a child of the user's own ckptbpf; the worker has the user's ids, no right beyond them, and is closed to its
/// user, whose program it would let out of the job's limits.
#[test]
fn the_worker_is_the_user_s_and_closed_to_the_user() {
    let sandbox = Sandbox::new("daemon_worker");
    let daemon = Daemon::begin(&sandbox, &[]);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    let (worker, program) = (the_worker(&sandbox, &daemon), counting.job.program());
    let all = sandbox.ps();
    let parent_of = |pid: i32| all.iter().find(|one: &&Process| one.pid == pid).unwrap().parent;
    assert_eq!(parent_of(program), counting.job.running().pid);
    let uids = format!("{UID}\t{UID}\t{UID}\t{UID}");
    for (name, value) in [
        ("Uid:", uids.as_str()),
        ("Gid:", uids.as_str()),
        ("Groups:", &UID.to_string()),
        ("CapPrm:", "0000000000000000"),
        ("CapEff:", "0000000000000000"),
        ("CapInh:", "0000000000000000"),
        ("CapAmb:", "0000000000000000"),
        ("NoNewPrivs:", "1"),
    ] {
        assert_eq!(line_of(&sandbox, worker, name), value, "{name}");
    }
    assert_eq!(line_of(&sandbox, program, "TracerPid:"), "0");
    // As a script has it: `ckptbpf launch … & ckptbpf checkpoint $!`.
    let front = counting.job.running().pid.to_string();
    sandbox.run(counting.tool.verb("checkpoint", [front])).success();
    for name in ["mem", "environ", "maps", "fd"] {
        let look = Cmd::sh(&format!("cat /proc/{worker}/{name} || ls /proc/{worker}/{name}/"));
        let said = sandbox.run(counting.user.runs(&look)).stderr_text();
        assert!(said.contains("Permission denied"), "{name}: {said}");
    }
    // The core cannot be sent a signal, and lends the worker nothing.
    let kill = sandbox.run(counting.user.runs(&Cmd::sh(&format!("kill -9 {}", daemon.pid()))));
    assert!(kill.stderr_text().contains("not permitted"), "{}", kill.stderr_text());
    counting.ends_as_expected(&sandbox);
    sandbox.wait_for("word of the worker's end", SOON, || daemon.log().contains("worker over"));
    daemon.end();
}

/// kill -9 of the daemon itself: its jobs go on with their checkpoints, and a new daemon takes its place.
#[test]
fn a_daemon_that_is_killed_harms_nobody_and_is_replaced() {
    let sandbox = Sandbox::new("daemon_killed");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut counting = Counting::begin(&sandbox, &daemon, &[]);
    daemon.kill();
    let taken = counting.job.checkpoint();
    assert_eq!(taken.kind, "delta");
    let daemon = Daemon::begin(&sandbox, &[]);
    counting.job.checkpoint();
    assert!(workers(&sandbox, &daemon).is_empty());
    counting.job.kill_all();
    let daemon = Daemon::begin(&sandbox, &[]);
    counting.job.restart(Mode::Eager, &[]);
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// kill -9 of the user's own ckptbpf: the program goes on, and nothing is left of the job in the daemon.
#[test]
fn a_front_that_is_killed_leaves_nothing_in_the_daemon() {
    let sandbox = Sandbox::new("daemon_front_killed");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut counting = Counting::begin(&sandbox, &daemon, &["-i", "0.05"]);
    let program = counting.job.kill_supervisor();
    sandbox.wait_for("the worker to be gone", SOON, || workers(&sandbox, &daemon).is_empty());
    wait_for_no_job(&sandbox, &counting.tool);
    let attach = Cmd::new(&counting.tool.binary).arg("attach").arg(program.to_string());
    counting.job.attach_by(counting.user.runs_beside(program, &attach));
    counting.job.checkpoint();
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// What scripts go by: exit statuses, signals, checkpoints that are the end.
#[test]
fn statuses_and_signals_are_the_program_s() {
    let sandbox = Sandbox::new("daemon_statuses");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let launch = |dir: &str, options: &[&str], line: &str| {
        let program = Cmd::new("/bin/sh").args(["-c", line]);
        tool.verb("launch", ["-d", dir]).args(options).arg("--").program(&program)
    };
    let said = sandbox.run(launch("a", &[], "echo out; echo err >&2; exit 3")).expect_code(3);
    assert_eq!((said.stdout_text().as_str(), said.stderr_text().as_str()), ("out\n", "err\n"));
    sandbox.run(launch("b", &[], "kill -9 $$")).expect_code(137);
    let none = sandbox.run(tool.verb("launch", ["-d", "c", "--", "./none"])).expect_code(127).stderr_text();
    assert!(none.contains("./none: not found"), "{none}");
    // Orphans are waited for, and the first process's status counts.
    sandbox.run(launch("d", &[], "(sleep 0.3; echo late > late) & exit 4")).expect_code(4);
    assert!(tool.user.clone().unwrap().home().join("late").exists());
    let waits =
        "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let running = sandbox.spawn(launch("e", &["--ckpt-signal", "USR2"], waits));
    running.wait_for_output("ready", SOON);
    for (signal, word) in [(Signal::SIGUSR1, "usr1"), (Signal::SIGTERM, "term")] {
        running.kill(signal);
        running.wait_for_output(word, SOON);
    }
    running.wait(SOON).expect_code(5);
    let ends = ["--ckpt-signal", "USR2", "--exit-after-ckpt"];
    let running = sandbox.spawn(launch("f", &ends, waits));
    running.wait_for_output("ready", SOON);
    running.kill(Signal::SIGUSR2);
    let said = running.wait(SOON).expect_code(85).stderr_text();
    assert!(said.contains("stopped with checkpoint 1"), "{said}");
    // A directory that holds checkpoints is refused as ever.
    let said = sandbox.run(launch("f", &[], "true")).expect_code(125).stderr_text();
    assert!(said.contains("--new"), "{said}");
    daemon.end();
}

/// Whoever is held back by what would not hold a worker back gets none, is told why, and goes on without.
#[test]
fn who_is_held_back_goes_on_without() {
    let sandbox = Sandbox::new("daemon_held_back");
    let daemon = Daemon::begin(&sandbox, &["--jobs", "1"]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let launch = |dir: &str| Cmd::new(&tool.binary).args(["launch", "-d", dir, "--", "/bin/true"]);
    let is_said = |cmd: Cmd, words: &str| {
        let said = sandbox.run(cmd).success().stderr_text();
        assert!(said.contains("the daemon at /run/ckptbpf/daemon.sock is done without: "), "{said}");
        assert!(said.contains(words), "{said}");
    };
    let within = |prefix: &[&str], dir: &str| {
        let inner = Cmd::new(prefix[0]).args(&prefix[1..]).program(&launch(dir));
        user.runs(&inner)
    };
    is_said(within(&["unshare", "--user", "--map-current-user"], "a"), "user or pid namespace");
    wait_for_no_job(&sandbox, &tool);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    is_said(user.runs(&launch("b")), "as many jobs with it as a user may have");
    counting.ends_as_expected(&sandbox);
    wait_for_no_job(&sandbox, &tool);
    // Nothing is said where nobody is to be asked.
    let said = sandbox.run(tool.verb("launch", ["-d", "c", "--", "/bin/true"])).success().stderr_text();
    assert_eq!(said, "");
    let said = sandbox.run(user.runs(&launch("d").env("CKPTBPF_SOCKET", ""))).success().stderr_text();
    assert_eq!(said, "");
    daemon.end();
}

#[test]
fn count_in_python_by_daemon() {
    survives("python", victim_cmd("count.py").args(["f", "1100", "3000"]), Some("f"));
}

/// After a restart, too, the program is the front's, signals and stops and statuses are as ever, and a restart that fails says why
/// once.
#[test]
fn a_restarted_program_is_a_child_of_the_user_s_own() {
    let sandbox = Sandbox::new("daemon_restarted");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut counting = Counting::begin(&sandbox, &daemon, &["--ckpt-signal", "USR2"]);
    let expected = counting.job.program();
    counting.job.kill_all();
    // Of one whose file is gone nothing is started.
    let (file, aside) = (counting.user.home().join("numbers"), counting.user.home().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let said = sandbox.run(counting.tool.verb("restart", ["images"])).expect_code(125).stderr_text();
    assert_eq!(said.matches("numbers").count(), 1, "{said}");
    std::fs::rename(&aside, &file).unwrap();
    counting.job.restart(Mode::Eager, &["-v"]);
    let program = counting.job.program();
    let said = counting.job.running().stderr();
    let told = format!(
        "the program runs in a user and pid namespace of its own, as pid {expected} there (here: {program})"
    );
    assert!(said.contains(&told), "{said}");
    let all = sandbox.ps();
    let of = |pid: i32| all.iter().find(|one: &&Process| one.pid == pid).unwrap();
    let init = of(of(program).parent);
    assert_eq!((init.comm.as_str(), init.parent), ("ckptbpf-init", counting.job.running().pid));
    let worker = the_worker(&sandbox, &daemon);
    let inside = all.iter().find(|one| one.parent == worker).expect("one that works inside");
    for pid in [worker, inside.pid] {
        let look = Cmd::sh(&format!("cat /proc/{pid}/environ"));
        let said = sandbox.run(counting.user.runs(&look)).stderr_text();
        assert!(said.contains("Permission denied"), "{said}");
    }
    // What is sent to the front is the program's, but for the signal that is a checkpoint's; it can be asked for one by its id, too.
    let front = counting.job.running();
    sandbox.run(counting.tool.verb("checkpoint", [front.pid.to_string()])).success();
    let before = counting.job.newest();
    front.kill(Signal::SIGUSR2);
    counting.job.wait_for_checkpoint(before + 1);
    front.kill(Signal::SIGSTOP);
    front.kill(Signal::SIGCONT);
    sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
    let state = |pid: i32| line_of(&sandbox, pid, "State:");
    sandbox.wait_for("the front to stop with the program", SOON, || state(front.pid).starts_with('T'));
    sandbox.kill(program, Signal::SIGCONT as i32).unwrap();
    sandbox.wait_for("the front to go on with it", SOON, || !state(front.pid).starts_with('T'));
    front.kill(Signal::SIGTERM);
    counting.job.wait(SOON).expect_code(143);
    sandbox.wait_for("nothing to be left", SOON, || workers(&sandbox, &daemon).is_empty());
    daemon.end();
}

/// kill -9 of each of those who have to do with a restarted program.
#[test]
fn deaths_after_a_restart() {
    let sandbox = Sandbox::new("daemon_restarted_deaths");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut counting = Counting::begin(&sandbox, &daemon, &[]);
    counting.job.kill_all();
    counting.job.restart(Mode::Eager, &[]);
    let program = counting.job.program();
    counting.job.checkpoint();
    // The worker, or the one that works inside: another one takes its place, three times.
    let workers_now = || {
        let worker = the_worker(&sandbox, &daemon);
        let all = sandbox.ps();
        (worker, all.iter().find(|one| one.parent == worker).expect("one that works inside").pid)
    };
    for times in 1..=3 {
        let (worker, inside) = workers_now();
        counting.has_another_worker(&sandbox, if times == 2 { worker } else { inside }, times);
        assert_eq!(counting.job.program(), program);
    }
    // Then the program goes on, and is attached to.
    sandbox.kill(workers_now().1, Signal::SIGKILL as i32).unwrap();
    let running = counting.job.running();
    sandbox.wait_for("word of it", SOON, || running.stderr().contains("there are no more checkpoints"));
    sandbox.wait_for("the worker to be gone", SOON, || workers(&sandbox, &daemon).is_empty());
    // The front stops with it all the same.
    let state = |pid: i32| line_of(&sandbox, pid, "State:");
    sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
    sandbox.wait_for("the front to stop with the program", SOON, || state(running.pid).starts_with('T'));
    sandbox.kill(program, Signal::SIGCONT as i32).unwrap();
    sandbox.wait_for("the front to go on with it", SOON, || !state(running.pid).starts_with('T'));
    let attach = Cmd::new(&counting.tool.binary).arg("attach").arg(program.to_string());
    let attach = sandbox.spawn(counting.user.runs_beside(running.pid, &attach));
    counting.job.checkpoint();
    // By a worker, too, which has gone to where the program is.
    let (worker, inside) = workers_now();
    assert_ne!(worker, inside);
    for pid in [worker, inside] {
        let look = Cmd::sh(&format!("cat /proc/{pid}/environ"));
        let said = sandbox.run(counting.user.runs(&look)).stderr_text();
        assert!(said.contains("Permission denied"), "{said}");
    }
    // The front: the program goes on; with init, nothing does.
    counting.job.lose_supervisor();
    let alive = |pid: i32| sandbox.ps().iter().any(|one| one.pid == pid);
    assert!(alive(program));
    let init = sandbox.ps().into_iter().find(|one| one.comm == "ckptbpf-init").unwrap().pid;
    sandbox.kill(init, Signal::SIGKILL as i32).unwrap();
    sandbox.wait_for("the program to be gone", SOON, || !alive(program));
    attach.wait(SOON);
    counting.job.restart(Mode::Eager, &[]);
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// `run`, and `--detach`: one line for both launch and restart, and in the background.
#[test]
fn run_by_daemon_also_in_the_background() {
    let sandbox = Sandbox::new("daemon_run");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&held(&sandbox, victim_cmd("count_static").args(["numbers", "3000", "2000"])));
    let run = |options: &[&str]| tool.verb("run", ["-d", "images"]).args(options).arg("--").program(&program);
    let lines = || std::fs::read_to_string(user.home().join("numbers")).unwrap_or_default().lines().count();
    for round in 1..3 {
        sandbox.run(run(&["--detach"])).success();
        assert_eq!(workers(&sandbox, &daemon).len(), 1, "{}", daemon.log());
        let before = lines();
        sandbox.wait_for("the program to go on", SOON, || lines() > before + 20);
        sandbox.run(tool.verb("checkpoint", ["--kill", "images"])).success();
        sandbox.wait_for("all to be over", SOON, || workers(&sandbox, &daemon).is_empty());
        let listed = sandbox.run(tool.verb("list", ["--json", "images"])).success().stdout_text();
        assert!(listed.contains(&format!("\"id\":{round},")), "{listed}");
    }
    let_go(&sandbox);
    sandbox.run(run(&[])).success();
    assert_eq!(lines(), 3000);
    daemon.end();
}

/// A lazy restart: served by the daemon's userfaultfd, its memory is there behind it, and the next checkpoint is a delta.
#[test]
fn a_lazy_restart_by_daemon() {
    let sandbox = Sandbox::new("daemon_lazy");
    let daemon = Daemon::begin(&sandbox, &[]);
    let mut counting = Counting::begin(&sandbox, &daemon, &[]);
    counting.job.kill_all();
    counting.job.restart(Mode::Lazy, &["--json"]);
    counting.job.program();
    let said = counting.job.running().stderr();
    let line =
        said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no line of JSON: {said}"));
    let told: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(told["mode"], "lazy", "{said}");
    assert!(
        told["pages_lazy"].as_u64().unwrap() > 50 && !said.contains("asked to be lazy is none"),
        "{said}"
    );
    sandbox.wait_for("all pages to be there", SOON, || fills_done(&sandbox, &counting.job) > 0);
    assert_eq!(counting.job.checkpoint().kind, "delta");
    counting.job.kill_all();
    // Whoever lends none has eager ones.
    daemon.end();
    let daemon = Daemon::begin(&sandbox, &["--no-lazy"]);
    counting.job.restart(Mode::Lazy, &["--json"]);
    counting.job.program();
    let said = counting.job.running().stderr();
    assert!(
        said.contains("is none: the daemon lends no userfaultfd(2)") && said.contains("(--no-lazy)"),
        "{said}"
    );
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// While pages are missing, the death of whoever has to do with them is the program's: it never reads what is not there.
#[test]
fn deaths_while_pages_are_missing_by_daemon() {
    let sandbox = Sandbox::with_limit("daemon_lazy_deaths", Duration::from_secs(170));
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    // 32 MiB, each step of which looks at 20 pages and says what it has seen.
    let program = victim_cmd("lazymem").args(["32", "60", "-", "20", "2"]);
    let expected = Expected::of(&sandbox, &program, None);
    let program = victim_cmd("lazymem").args(["32", "60", "20000", "20", "2"]);
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n3 ", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    let hold = user.home().join("hold");
    for who in ["worker", "ckptbpf", "ckptbpf-init", "page-guardian"] {
        std::fs::write(&hold, "").unwrap();
        job.restart_at(from, Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
        let program = job.program();
        assert!(job.pages_missing() > 5000, "{who}");
        let worker = the_worker(&sandbox, &daemon);
        let is_meant = |one: &&Process| match who {
            "worker" => one.parent == worker,
            "ckptbpf" => one.pid == job.running().pid,
            name => one.comm == name,
        };
        let struck = sandbox.ps().iter().find(is_meant).expect(who).pid;
        sandbox.kill(struck, Signal::SIGKILL as i32).unwrap();
        let is_left = || sandbox.ps().into_iter().any(|one| one.comm == "lazymem" && one.state != 'Z');
        sandbox.wait_for(&format!("the end of program {program} with {who}"), SOON, || !is_left());
        sandbox.wait_for("the end of the rest", SOON, || sandbox.ps().len() == 1);
        let ended = job.wait(SOON);
        assert_ne!(ended.code(), 0, "{who}: {}", ended.stderr_text());
        let printed = String::from_utf8(job.stdout()).unwrap();
        let whole = printed.rfind('\n').map_or("", |end| &printed[..=end]);
        assert_same(who, &expected.stdout[..whole.len()], whole.as_bytes());
    }
    std::fs::remove_file(&hold).unwrap();
    job.restart_at(from, Mode::Lazy, &[]);
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    daemon.end();
}

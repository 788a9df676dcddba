//! The daemon and control groups, and where it is started from.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::calls::{Calls, From, adopts, binds};
use ckpt_tests::memory_group::MemoryGroup;
use ckpt_tests::scenario::{Daemon, Tool, ckptbpf, verb};
use ckpt_tests::user::User;
use ckpt_tests::{Cmd, Job, Mode, Running, Sandbox, skip, victim_cmd};
use nix::libc::SYS_clock_nanosleep;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A job with ten megabytes: what ckptbpf takes of them is less than three, also in a restart; the rest is the daemon's.
#[test]
fn ten_megabytes_are_enough_by_daemon() {
    const NAME: &str = "ten_megabytes_are_enough_by_daemon";
    const LIMIT: u64 = 10 << 20;
    let sandbox = Sandbox::new("daemon_memory");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&victim_cmd("count_static").args(["numbers", "300", "2000"]));
    let measured = |what: &str, command: &Cmd| in_group(&sandbox, &user, what, LIMIT, command);
    let Some((bare, group)) = measured("bare", &program) else {
        return skip::skip(NAME, "no control group with a limit on memory can be made here");
    };
    bare.wait(SOON).success();
    let alone = group.peak();
    let ours = |verb: &str| Cmd::new(&tool.binary).args([verb, "-i", "0.05", "-d", "images"]);
    for (what, command) in [
        ("launched", ours("launch").arg("--").program(&program)),
        ("restarted", ours("run").arg("--").program(&program)),
    ] {
        let (running, group) = measured(what, &command).unwrap();
        running.wait(SOON).success();
        let (peak, refused) = (group.peak(), group.refused());
        println!("{what}: {peak} bytes at most, {alone} without ckptbpf");
        assert_eq!(refused, 0, "{what}: {peak} bytes");
        assert!(peak < alone + (3 << 20), "{what}: {peak} bytes, {alone} without ckptbpf");
    }
    daemon.end();
}

/// A shell that a batch system would have started, in the job's group before it does anything; none where there are no such
/// groups.
fn in_group<'b>(
    sandbox: &'b Sandbox,
    user: &User,
    name: &str,
    limit: u64,
    command: &Cmd,
) -> Option<(Running<'b>, MemoryGroup)> {
    let group = MemoryGroup::make(name, limit)?;
    let (running, gate) = behind_a_gate(sandbox, user, command);
    group.take(sandbox, running.pid);
    std::fs::write(&gate, "go\n").unwrap();
    Some((running, group))
}

/// A shell of the user's that becomes the command once a word is written to the FIFO.
fn behind_a_gate<'b>(sandbox: &'b Sandbox, user: &User, command: &Cmd) -> (Running<'b>, PathBuf) {
    let gate = sandbox.dir().join("gate");
    let _ = std::fs::remove_file(&gate);
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let line = format!("read -r word < {}; exec \"$@\"", gate.display());
    let shell = Cmd::new("/bin/sh").args(["-c", &line, "sh"]).program(command);
    (sandbox.spawn(user.runs(&shell)), gate)
}

/// Shared memory is charged to who touches it first: at a restart that is the program, and not the daemon.
#[test]
fn restored_shared_memory_is_the_job_s() {
    const SIZE: u64 = 64 << 20;
    let sandbox = Sandbox::new("daemon_shared_memory");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let line = format!(
        "import mmap, select\n\
        memory = mmap.mmap(-1, {SIZE})\n\
        memory[:] = b'memory! ' * ({SIZE} // 8)\n\
        print('made', flush=True)\n\
        while True:\n    \
            select.select([], [], [], 0.05)\n    \
            print(memory[:8] == memory[-8:] == b'memory! ', flush=True)\n"
    );
    let program = user.reaches(&Cmd::new("/usr/bin/python3").args(["-c", &line]));
    let mut job = Job::launch_by(&sandbox, tool.clone(), user.home().join("images"), &[], &program);
    job.running().wait_for_output("True", SOON);
    job.checkpoint_and_end();
    let restart = Cmd::new(&tool.binary).args(["restart", "images"]);
    let Some((running, group)) = in_group(&sandbox, &user, "shared", 1 << 30, &restart) else {
        return skip::skip("restored_shared_memory_is_the_job_s", "no control group can be made here");
    };
    running.wait_for_output("True", SOON);
    let peak = group.peak();
    assert!(peak > SIZE, "{peak} bytes of {SIZE}");
    running.kill(Signal::SIGTERM);
    assert!(!running.wait(SOON).stdout_text().contains("False"));
    daemon.end();
}

/// In the background, at another place, with a log of its own; nothing of it is left when it has ended.
#[test]
fn a_daemon_in_the_background() {
    let sandbox = Sandbox::new("daemon_background");
    let at = |name: &str| sandbox.dir().join(name);
    let [socket, pidfile, log] = ["d.sock", "d.pid", "d.log"].map(at);
    let daemon = || verb("daemon", ["--socket"]).arg(&socket);
    let check = || sandbox.run(daemon().arg("--check"));
    assert!(check().expect_code(1).stdout_text().contains("no daemon at"));
    let begin = daemon().arg("-v").arg("--pidfile").arg(&pidfile).arg("--log").arg(&log);
    // Of one that is gone: whoever reads it meanwhile reads that, and never nothing.
    std::fs::write(&pidfile, "1\n").unwrap();
    std::fs::hard_link(&pidfile, at("as-it-was")).unwrap();
    let said = sandbox.run(begin.clone()).success();
    assert_eq!(said.stderr_text(), "");
    assert_eq!(std::fs::read_to_string(at("as-it-was")).unwrap(), "1\n");
    let pid: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    assert!(check().success().stdout_text().contains(&format!("daemon {pid} at")));
    // One more is refused, and says why.
    let second = sandbox.run(daemon()).expect_code(125).stderr_text();
    assert!(second.contains("a daemon listens at") && second.contains("already"), "{second}");
    let user = User::of(&sandbox);
    let other = Cmd::new(user.copy_of(&ckptbpf())).args(["daemon", "--socket", "d.sock"]);
    let refused = sandbox.run(user.runs(&other)).expect_code(125).stderr_text();
    assert!(refused.contains("the daemon is root's"), "{refused}");
    sandbox.kill(pid, Signal::SIGTERM as i32).unwrap();
    sandbox.wait_for("its end", SOON, || sandbox.ps().is_empty());
    assert!(!socket.exists() && !pidfile.exists());
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("info: listening at") && log.contains("info: ended"), "{log}");
}

/// Where /proc shows users nothing that they may not trace, they do not see their workers, and reach them all the same.
#[test]
fn a_worker_that_is_hidden_from_its_user_is_asked() {
    let sandbox = Sandbox::new("daemon_hidden");
    sandbox.run("mount -o remount,hidepid=2 /proc").success();
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&victim_cmd("count_static").args(["numbers", "3000", "2000"]));
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    let seen = sandbox.run(user.runs(&Cmd::sh("grep -l '[w]orker' /proc/[0-9]*/cmdline"))).stdout_text();
    assert_eq!(seen, "", "it is to be hidden");
    job.checkpoint();
    job.checkpoint_and_end();
    job.restart(Mode::Lazy, &[]);
    job.checkpoint();
    job.kill_all();
    daemon.end();
    sandbox.run("mount -o remount,hidepid=0 /proc").success();
}

/// The program has said a word, and its worker, which its user does not see, cannot be asked yet: who asks waits for that.
#[test]
fn a_worker_that_is_hidden_from_its_user_is_waited_for_while_it_starts() {
    let sandbox = Sandbox::new("daemon_hidden_start");
    sandbox.run("mount -o remount,hidepid=2 /proc").success();
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&victim_cmd("count_static").args(["numbers", "1000000", "2000"]));
    let launch = Cmd::new(&tool.binary).args(["launch", "-d", "images", "--"]).program(&program);
    let (running, gate) = behind_a_gate(&sandbox, &user, &launch);
    let front = running.outside_pid().unwrap();
    let (front, front_is_held) = Calls::held_before(front, From::Exec, adopts);
    std::fs::write(&gate, "go\n").unwrap();
    front_is_held.wait();
    // By now its worker waits for the program.
    let worker = sandbox.ps().into_iter().find(|one| one.parent == daemon.pid()).expect("a worker").pid;
    let outside = sandbox.outside_pid(worker).unwrap();
    let (supervisor, supervisor_is_held) = Calls::held_before(outside, From::Now, binds);
    front_is_held.let_go();
    supervisor_is_held.wait();
    running.wait_for_output("\n", SOON);
    let seen = sandbox.run(user.runs(&Cmd::sh(&format!("ls /proc/{worker}"))));
    assert_ne!(seen.code(), 0, "it is to be hidden: {}", seen.stdout_text());
    let asked = sandbox.spawn(tool.verb("checkpoint", ["images"]));
    let call = format!("/proc/{}/syscall", asked.outside_pid().unwrap());
    sandbox.wait_for("it to sleep", SOON, || {
        assert!(!asked.has_ended(), "{}", asked.stderr());
        std::fs::read_to_string(&call).is_ok_and(|text| text.starts_with(&format!("{SYS_clock_nanosleep} ")))
    });
    supervisor_is_held.let_go();
    asked.wait(SOON).success();
    running.kill(Signal::SIGTERM);
    running.wait(SOON).expect_code(143);
    assert!(front.end() && supervisor.end());
    daemon.end();
    sandbox.run("mount -o remount,hidepid=0 /proc").success();
}

/// A daemon of a Slurm job serves that job alone, as its control groups tell.
#[test]
fn a_daemon_of_one_job() {
    const NAME: &str = "a_daemon_of_one_job";
    let sandbox = Sandbox::new("daemon_job");
    let Some(group) = MemoryGroup::make("job", 1 << 30) else {
        return skip::skip(NAME, "no control group can be made here");
    };
    for (job, is_served) in [("7", false), ("8", true)] {
        let daemon = Daemon::begin(&sandbox, &["--job", job]);
        let tool = daemon.serves(Tool::of_user(&sandbox));
        let user = tool.user.clone().unwrap();
        let launch = Cmd::new(&tool.binary).args(["launch", "-d", job, "--", "/bin/true"]);
        let (running, gate) = behind_a_gate(&sandbox, &user, &launch);
        group.take_below("job_8", &sandbox, running.pid);
        std::fs::write(&gate, "go\n").unwrap();
        let said = running.wait(SOON).success().stderr_text();
        let is_refused = said.contains("is done without: it is there for another job");
        assert_eq!(is_refused, !is_served, "{said}");
        assert_eq!(daemon.log().contains(": worker "), is_served, "{}", daemon.log());
        daemon.end();
    }
}

/// One that a prolog starts in a job's control groups, where Slurm is configured so, is not ended with them, nor is its memory the job's.
#[test]
fn a_daemon_leaves_the_control_groups_of_a_job() {
    const NAME: &str = "a_daemon_leaves_the_control_groups_of_a_job";
    let sandbox = Sandbox::new("daemon_leaves");
    let Some(group) = MemoryGroup::make("slurm", 1 << 30) else {
        return skip::skip(NAME, "no control group can be made here");
    };
    let at = |name: &str| sandbox.dir().join(name);
    let [gate, pidfile, log] = ["gate", "d.pid", "d.log"].map(at);
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let daemon = verb("daemon", ["--pidfile"]).arg(&pidfile).arg("--log").arg(&log);
    let line = format!("read -r word < {}; exec \"$@\"", gate.display());
    let running = sandbox.spawn(Cmd::new("/bin/sh").args(["-c", &line, "sh"]).program(&daemon));
    group.take_below("job_8", &sandbox, running.pid);
    std::fs::write(&gate, "go\n").unwrap();
    running.wait(SOON).success();
    let pid: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    let groups = std::fs::read_to_string(sandbox.see(format!("/proc/{pid}/cgroup").as_ref())).unwrap();
    assert!(!groups.contains("job_8"), "{groups}");
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("it has left Slurm's control group for /sys/fs/cgroup/"), "{said}");
    sandbox.kill(pid, Signal::SIGTERM as i32).unwrap();
    sandbox.wait_for("its end", SOON, || sandbox.ps().is_empty());
    // Where there are control groups of the second version, one of its own.
    for group in ["/sys/fs/cgroup/ckptbpf/core", "/sys/fs/cgroup/ckptbpf"] {
        let _ = std::fs::remove_dir(group);
    }
}

/// systemd is told when it serves, also by a socket without a file, and SIGHUP has it open its log again (logrotate).
#[test]
fn a_daemon_tells_systemd_and_opens_its_log_again() {
    let sandbox = Sandbox::new("daemon_notify");
    let at = |name: &str| sandbox.dir().join(name);
    let [log, moved, place] = ["d.log", "d.log.1", "notify"].map(at);
    let lines = "
import socket, sys
place = sys.argv[1]
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(chr(0) + place[1:] if place[0] == '@' else place)
print('waits', flush=True)
assert server.recv(100) == b'READY=1'
";
    for place in [place.to_str().unwrap(), "@ckptbpf-notify"] {
        let systemd = sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", lines, place]));
        systemd.wait_for_output("waits", SOON);
        let begin = verb("daemon", ["--log"]).arg(&log).env("NOTIFY_SOCKET", place);
        let daemon = sandbox.spawn(begin);
        systemd.wait(SOON).success();
        // What is told is so.
        sandbox.run(verb("daemon", ["--check"])).success();
        std::fs::rename(&log, &moved).unwrap();
        daemon.kill(Signal::SIGHUP);
        let said = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        sandbox.wait_for("the log to be opened again", SOON, || said(&log).contains("opened again"));
        daemon.kill(Signal::SIGTERM);
        daemon.wait(SOON).success();
        assert!(said(&log).contains("info: ended") && !said(&moved).contains("info: ended"));
        std::fs::remove_file(&log).unwrap();
    }
    // Without a log it goes on: `systemctl reload` of the unit as it is shipped.
    let daemon = Daemon::begin(&sandbox, &[]);
    sandbox.kill(daemon.pid(), Signal::SIGHUP as i32).unwrap();
    let has_heard = || daemon.log().contains("no log of its own");
    sandbox.wait_for("word of SIGHUP", SOON, has_heard);
    daemon.check().success();
    daemon.end();
}

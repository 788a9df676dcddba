//! What users do with what is theirs of a daemon: their own workers, and the processes that are made for them.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool, daemon_client, verb};
use ckpt_tests::{Cmd, Job, Sandbox, User, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A user's job that counts, with a daemon's worker.
struct Counting<'b> {
    job: Job<'b>,
    user: User,
    program: i32,
    worker: i32,
}

impl<'b> Counting<'b> {
    fn begin(sandbox: &'b Sandbox, daemon: &Daemon<'b>) -> Self {
        let tool = daemon.serves(Tool::of_user(sandbox));
        let user = tool.user.clone().unwrap();
        let program = user.reaches(&victim_cmd("count_static").args(["numbers", "1000000", "2000"]));
        let job = Job::launch_by(sandbox, tool, user.home().join("images"), &[], &program);
        job.running().wait_for_output("\n50 ", SOON);
        job.checkpoint();
        let (program, worker) = (job.program(), worker(sandbox, daemon).expect("a worker"));
        Self { job, user, program, worker }
    }
}

/// The one worker of a daemon, if there is one.
fn worker(sandbox: &Sandbox, daemon: &Daemon<'_>) -> Option<i32> {
    sandbox.ps().iter().find(|one| one.parent == daemon.pid()).map(|one| one.pid)
}

/// It is outside of the job's limits, and so is what it holds.
#[test]
fn a_worker_that_is_stopped_ends_with_its_front() {
    let sandbox = Sandbox::new("misuse_stopped");
    let daemon = Daemon::begin(&sandbox, &[]);
    let Counting { mut job, user, program, worker: stopped } = Counting::begin(&sandbox, &daemon);
    sandbox.run(user.runs(&Cmd::sh(&format!("kill -STOP {stopped}")))).success();
    let state = || sandbox.ps().into_iter().find(|one| one.pid == stopped).map(|one| one.state);
    sandbox.wait_for("the worker to stand", SOON, || state() == Some('T'));
    job.lose_supervisor();
    sandbox.wait_for("the worker to be gone", SOON, || worker(&sandbox, &daemon).is_none());
    // The program is none the worse for it.
    assert!(sandbox.ps().iter().any(|one| one.pid == program));
    sandbox.kill(program, Signal::SIGKILL as i32).unwrap();
    let log = daemon.end().stderr_text();
    assert!(log.contains("has not ended with its front, and is ended"), "{log}");
}

/// Each of a user's jobs begins as a process of root's, and has lines in the log: of those that end at once there are not many.
#[test]
fn jobs_without_number_begin_only_so_often() {
    let sandbox = Sandbox::new("misuse_often");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let lines = "
import select
def said(client):
    kind, body, _ = answer(client)
    client.close()
    return 0 if kind == 256 else struct.unpack('I', body[:4])[0]
begin = time.monotonic()
count, answers = 0, []
while 16 not in answers:
    answers = [said(client) for client in [asks_for_worker() for _ in range(8)]]
    # Too many may be there at once.
    assert set(answers) <= {0, 5, 16}, answers
    count += answers.count(0)
    assert count <= 64 + 4 * (time.monotonic() - begin) + 1, count
    if 5 in answers:
        select.select([], [], [], 0.01)
assert count >= 64, count
";
    sandbox.run(daemon_client(&user, lines)).success();
    // Nobody else notices.
    let other = Tool { user: Some(user.other()), ..tool };
    let said = sandbox.run(other.verb("launch", ["-d", "a", "--", "/bin/true"])).success().stderr_text();
    assert_eq!(said, "");
    daemon.end();
}

/// A log that is a file of its own has an end; then it begins anew.
#[test]
fn a_log_does_not_grow_for_ever() {
    let sandbox = Sandbox::new("misuse_log");
    let at = |name: &str| sandbox.dir().join(name);
    let [socket, pidfile, log] = ["d.sock", "d.pid", "d.log"].map(at);
    std::fs::File::create(&log).unwrap().set_len(17 << 20).unwrap();
    let begin = verb("daemon", ["--socket"]).arg(&socket).arg("--pidfile").arg(&pidfile);
    sandbox.run(begin.arg("--log").arg(&log)).success();
    let length = || std::fs::metadata(&log).unwrap().len();
    sandbox.wait_for("the log to be short", SOON, || length() < 1 << 20);
    let pid: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    sandbox.kill(pid, Signal::SIGTERM as i32).unwrap();
    sandbox.wait_for("its end", SOON, || sandbox.ps().is_empty());
    assert!(std::fs::read_to_string(&log).unwrap().contains("info: ended"));
}

/// Nobody waits for whoever does not read the log.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let sandbox = Sandbox::new("misuse_pipe");
    let line = "
import fcntl, os, sys
reading, writing = os.pipe()
fcntl.fcntl(writing, 1031, 4096)
os.dup2(writing, 2)
# Open, so that it is not over.
os.set_inheritable(reading, True)
os.execv(sys.argv[1], [sys.argv[1], 'daemon', '-vv'])
";
    let binary = ckpt_tests::ckptbpf();
    let daemon = sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", line]).arg(&binary));
    let check = || sandbox.run(verb("daemon", ["--check"])).code() == 0;
    sandbox.wait_for("the daemon to answer", SOON, check);
    let lines = "
# What is no message, or, as connections take a while to be closed, too many of them.
for _ in range(500):
    assert refusal(b'x') in (1, 6, 16)
";
    let user = User::of(&sandbox);
    sandbox.run(daemon_client(&user, lines)).success();
    assert!(check());
    daemon.kill(Signal::SIGTERM);
    daemon.wait(SOON).success();
}

/// Limits, nice value and processors of a user's process are those of their worker.
#[test]
fn a_worker_has_no_more_than_its_peer_of_what_bounds_processes() {
    let sandbox = Sandbox::new("misuse_bounds");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let read = |path: &str| std::fs::read_to_string(sandbox.see(path.as_ref())).unwrap();
    let line = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = line(&std::fs::read_to_string("/proc/self/status").unwrap(), "Cpus_allowed_list:");
    let last = own[0].rsplit([',', '-']).next().unwrap().to_owned();
    let program = user.reaches(&victim_cmd("count_static").args(["numbers", "1000000", "2000"]));
    let launch = Cmd::new(&tool.binary).args(["launch", "-d", "images", "--"]).program(&program);
    let limits = ["--fsize=536870912:1073741824", "--nproc=4000", "--core=0", "--"];
    let bounded = Cmd::new("prlimit").args(limits).args(["taskset", "-c", &last, "nice", "-n", "7"]);
    let running = sandbox.spawn(user.runs(&bounded.program(&launch)));
    running.wait_for_output("\n50 ", SOON);
    let worker = worker(&sandbox, &daemon).expect("a worker");
    let limits = read(&format!("/proc/{worker}/limits"));
    assert_eq!(line(&limits, "Max file size")[1], "1073741824");
    assert_eq!(line(&limits, "Max processes")[..2], ["4000", "4000"]);
    assert_eq!(line(&limits, "Max core file size")[..2], ["0", "0"]);
    let of_core = line(&read(&format!("/proc/{}/limits", daemon.pid())), "Max open files");
    assert_eq!(line(&limits, "Max open files"), of_core, "it needs many");
    let stat = read(&format!("/proc/{worker}/stat"));
    assert_eq!(stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(16), Some("7"));
    let status = read(&format!("/proc/{worker}/status"));
    assert_eq!(line(&status, "Cpus_allowed_list:"), [last]);
    running.kill(Signal::SIGTERM);
    running.wait(SOON).expect_code(143);
    daemon.end();
}

/// Where a setting opens whoever becomes another user to that user, there is no worker, also if it was changed meanwhile.
#[test]
fn no_worker_is_open_to_its_user_for_a_moment() {
    let sandbox = Sandbox::new("misuse_dumpable");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    // The setting itself is the whole machine's.
    let show = "echo 1 > setting && mount --bind setting /proc/sys/fs/suid_dumpable";
    sandbox.run(show).success();
    let launch = |dir: &str| sandbox.run(tool.verb("launch", ["-d", dir, "--", "/bin/true"])).success();
    let said = launch("a").stderr_text();
    assert!(said.contains("is done without: it cannot start a process for it"), "{said}");
    assert!(daemon.log().contains("fs.suid_dumpable is 1"), "{}", daemon.log());
    sandbox.run("umount /proc/sys/fs/suid_dumpable").success();
    assert_eq!(launch("b").stderr_text(), "");
    daemon.end();
}

/// Who asks for something has a thread of the worker's, and workers of all users share what the daemon may have.
#[test]
fn a_worker_has_few_threads_for_those_who_ask_it() {
    let sandbox = Sandbox::new("misuse_clients");
    let daemon = Daemon::begin(&sandbox, &[]);
    let Counting { mut job, user, .. } = Counting::begin(&sandbox, &daemon);
    let lines = "
import glob, socket
[place] = glob.glob('/tmp/ckptbpf-*/*.sock') + glob.glob('/run/ckptbpf/*/*.sock')
clients = []
for _ in range(60):
    client = socket.socket(socket.AF_UNIX)
    client.connect(place)
    clients.append(client)
said = [client.recv(4096) for client in clients]
few = sum(b'too many requests at once' in one for one in said)
assert few >= 40, (few, said)
";
    sandbox.run(user.runs(&Cmd::new("/usr/bin/python3").args(["-c", lines]))).success();
    job.checkpoint();
    job.kill_all();
    daemon.end();
}

//! Limits of a worker (setrlimit(2)) on files: open ones, of which it needs many, and their size, which is its user's.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use ckpt_tests::scenario::{Counting, Daemon, MODES, Tool, are_counted, steps, the_worker};
use ckpt_tests::skip::skip_part;
use ckpt_tests::user::UID;
use ckpt_tests::{Cmd, Job, Sandbox};

const SOON: Duration = Duration::from_secs(30);

/// Soft and hard limit of a process, as /proc/PID/limits shows them.
fn limit_of(sandbox: &Sandbox, pid: i32, name: &str) -> Vec<String> {
    let limits = std::fs::read_to_string(sandbox.see(format!("/proc/{pid}/limits").as_ref())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_ascii_whitespace().take(2).map(str::to_owned).collect()
}

/// A user's, whose files may have so many KiB.
fn with_files_of(sandbox: &Sandbox, daemon: &Daemon<'_>, most: u32) -> Tool {
    let tool = daemon.serves(Tool::of_user(sandbox));
    let binary = sandbox.dir().join("with-small-files");
    let line = format!("#!/bin/bash\nulimit -f {most}\nexec {} \"$@\"\n", tool.binary.display());
    std::fs::write(&binary, line).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    Tool { binary, ..tool }
}

/// A worker has a copy of each description of all processes of the program, which may be more than one process can have.
#[test]
fn workers_have_as_many_open_files_as_the_machine_allows() {
    const NAME: &str = "workers_have_as_many_open_files_as_the_machine_allows";
    let sandbox = Sandbox::new("daemon_open_files");
    let daemon = Daemon::begin_after(&sandbox, "ulimit -n 300; ulimit -f 100000", &[]);
    let counting = Counting::begin(&sandbox, &daemon, &[]);
    let worker = the_worker(&sandbox, &daemon);
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().to_owned();
    let (open_files, sizes) = match daemon.log().contains("workers have no more open files") {
        true => {
            skip_part(&format!("{NAME} (raised)"), "no CAP_SYS_RESOURCE");
            ("300".to_owned(), "102400000".to_owned())
        }
        false => (most, "unlimited".to_owned()),
    };
    assert_eq!(limit_of(&sandbox, worker, "Max open files"), [open_files.clone(), open_files]);
    assert_eq!(limit_of(&sandbox, worker, "Max file size"), [sizes.clone(), sizes]);
    counting.ends_as_expected(&sandbox);
    daemon.end();
}

/// A limit of its user's that no worker is to get around.
#[test]
fn a_worker_makes_no_file_larger_than_its_user_may() {
    let sandbox = Sandbox::new("daemon_file_sizes");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = with_files_of(&sandbox, &daemon, 4);
    let user = tool.user.clone().unwrap();
    let program = Cmd::sh("exec 8<> <(:); echo ready; while :; do read -t 0.1 -u 8; done");
    let images = user.home().join("images");
    let mut job = Job::launch_by(&sandbox, tool, images, &[], &program);
    job.running().wait_for_output("ready\n", SOON);
    job.program();
    let worker = the_worker(&sandbox, &daemon);
    assert_eq!(limit_of(&sandbox, worker, "Max file size"), ["4096", "4096"]);
    for _ in 0..3 {
        let said = job.try_checkpoint().expect_code(125).stderr_text();
        assert!(said.contains("file-size limit") || said.contains("File too large"), "{said}");
    }
    assert!(!job.running().has_ended(), "{}", job.running().stderr());
    assert_eq!(the_worker(&sandbox, &daemon), worker);
    job.kill_all();
    daemon.end();
}

/// A worker begins with a process of its own, which counts as its user's: where that may have none, it is not said to have been killed.
#[test]
fn a_worker_that_may_fork_nothing_is_refused_by_name() {
    let sandbox = Sandbox::new("daemon_processes");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let launch = Cmd::new(&tool.binary).args(["launch", "-d", "images", "--", "/bin/true"]);
    let bounded = Cmd::new("prlimit").args(["--nproc=1", "--"]).program(&launch);
    let said = sandbox.run(user.runs(&bounded)).expect_code(125).stderr_text();
    assert!(said.contains("is done without: it cannot start a process for it; its log says why"), "{said}");
    assert!(daemon.log().contains("cannot start the process that it shows"), "{}", daemon.log());
    daemon.end();
}

/// What the program has done to such a file since is undone by a mapping of the worker's own, whose /proc/self/mem is root's.
#[test]
fn a_mapped_file_larger_than_its_user_may_make_is_written_back_by_a_worker() {
    let sandbox = Sandbox::new("daemon_file_sizes_mapped");
    let daemon = Daemon::begin(&sandbox, &[]);
    // 32 MiB.
    let tool = with_files_of(&sandbox, &daemon, 32768);
    let home = tool.user.clone().unwrap().home().to_owned();
    let large = home.join("large");
    std::fs::write(&large, vec![7; 40 << 20]).unwrap();
    chown(&large, Some(UID), Some(UID)).unwrap();
    let script = "
import mmap, os, select
memory = mmap.mmap(os.open('large', os.O_RDWR), 40 << 20)
memory[-9:] = b'%9d' % 0
while True:
    memory[-9:] = b'%9d' % (int(memory[-9:]) + 1)
    print(int(memory[-9:]), flush=True)
    select.select([], [], [], 0.01)
";
    let program = Cmd::new("/usr/bin/python3").args(["-c", script]);
    let mut job = Job::launch_by(&sandbox, tool, home.join("images"), &[], &program);
    for mode in MODES {
        steps(&sandbox, job.running());
        job.checkpoint();
        // That is undone.
        steps(&sandbox, job.running());
        job.kill_all();
        job.restart(*mode, &[]);
    }
    steps(&sandbox, job.running());
    job.kill_all();
    are_counted(&job);
    daemon.end();
}

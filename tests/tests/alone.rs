//! What an ordinary user has without root, and without anybody who is: launch, checkpoints, restarts.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use ckpt_tests::scenario::{Holder, MODES, Survival, Tool, held, let_go, python_loop, survive};
use ckpt_tests::user::UID;
use ckpt_tests::{Cmd, Expected, Job, Mode, Process, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Every other restart is asked to be lazy, which none is.
fn survives(name: &str, program: Cmd, file: Option<&str>) {
    survive(&Survival { file, by_user: true, ..Survival::of(&format!("alone_{name}"), program) });
}

#[test]
fn count_alone() {
    survives("count", victim_cmd("count_static").args(["f", "1200", "3000"]), Some("f"));
}

#[test]
fn count_in_python_alone() {
    survives("python", victim_cmd("count.py").args(["f", "1100", "3000"]), Some("f"));
}

#[test]
fn a_shell_pipeline_alone() {
    survives("pipeline", victim_cmd("pipeline.sh").args(["800", "0.004"]), None);
}

#[test]
fn sixteen_threads_alone() {
    survives("threads", victim_cmd("threads16").args(["1200", "3000"]), None);
}

/// What takes rights that nobody lends a user is refused by name, and costs nothing.
#[test]
fn memory_of_system_v_alone() {
    let sandbox = Sandbox::new("alone_system_v");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let line = "import ctypes, signal\n\
        libc = ctypes.CDLL(None)\n\
        libc.shmat.restype = ctypes.c_void_p\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
        segment = libc.shmget(0, 4096, 0o1600)\n\
        assert libc.shmat(segment, None, 0)\n\
        libc.shmctl(segment, 0, None)\n\
        print('attached', flush=True)\n\
        signal.sigwait([signal.SIGUSR1])\n";
    let program = Cmd::new("/usr/bin/python3").args(["-c", line]);
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("attached", SOON);
    job.program();
    let said = job.try_checkpoint().expect_code(125).stderr_text();
    assert!(said.contains("/SYSV00000000") && said.contains("only root (CAP_CHECKPOINT_RESTORE)"), "{said}");
    job.signal(Signal::SIGUSR1);
    job.wait(SOON).success();
}

/// Sockets of every kind that a user may have: what waits in them is there, and they go on.
#[test]
fn sockets_alone() {
    let line = "import select, socket, sys\n\
        listener = socket.socket()\n\
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
        listener.bind(('127.0.0.1', 0))\n\
        listener.listen()\n\
        packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        packets.bind(('127.0.0.1', 0))\n\
        packets.connect(packets.getsockname())\n\
        name = socket.socket(socket.AF_UNIX)\n\
        name.bind('\\0ckptbpf-alone')\n\
        name.listen()\n\
        one, other = socket.socketpair()\n\
        one.send(b'0')\n";
    let body = "assert int(other.recv(9)) == i\n\
        one.send(b'%d' % (i + 1))\n\
        packets.send(b'packet')\n\
        assert packets.recv(9) == b'packet'\n\
        with socket.create_connection(listener.getsockname()) as client:\n    listener.accept()[0].close()\n\
        with socket.socket(socket.AF_UNIX) as client:\n    client.connect(name.getsockname())\n    name.accept()[0].close()\n\
        print(i, flush=True)";
    let program = format!("{line}{}", python_loop(700, 0.003, body));
    survives("sockets", Cmd::new("/usr/bin/python3").args(["-c", &program]), None);
}

fn line_of(sandbox: &Sandbox, program: i32, name: &str) -> String {
    let status = sandbox.see(Path::new(&format!("/proc/{program}/status")));
    let status = std::fs::read_to_string(status).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

/// What is said, who the program is, and that a checkpoint after a restart is a small one.
#[test]
fn a_restart_alone_is_eager_and_says_where_it_runs() {
    let sandbox = Sandbox::new("alone_said");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let checked = sandbox.run(tool.verb("check", ["--json"])).success().stdout;
    let report: serde_json::Value = serde_json::from_slice(&checked).unwrap();
    assert_eq!(report["way"], "alone", "{report}");
    let program = victim_cmd("count_static").args(["numbers", "3000", "2000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    let taken = job.checkpoint();
    assert_eq!(job.image(taken.id).metadata().unwrap().uid(), UID);
    let (id, mut holder) = (job.program(), None);
    for mode in MODES {
        job.kill_all();
        // It makes no difference whether somebody has its id.
        holder = (*mode == Mode::Lazy).then(|| Holder::of(&sandbox, id));
        job.restart(*mode, &["--json"]);
        let program = job.program();
        let said = job.running().stderr();
        assert!(said.contains("in a user and pid namespace of its own, as pid "), "{said}");
        assert!(said.contains("\"mode\":\"eager\""), "{said}");
        let is_told = said.contains("a restart that is asked to be lazy is none: userfaultfd(2) is refused");
        assert_eq!(is_told, *mode == Mode::Lazy, "{said}");
        for (name, value) in [("Uid:", "4242\t4242\t4242\t4242"), ("CapEff:", "0000000000000000")] {
            assert_eq!(line_of(&sandbox, program, name), value);
        }
        let delta = job.checkpoint();
        assert_eq!(delta.kind, "delta");
        assert!(delta.pages < taken.pages, "{} pages of {}", delta.pages, taken.pages);
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    holder.into_iter().for_each(Holder::end);
    assert_same("standard output", &expected.stdout, &job.stdout());
    assert_same("the file", &expected.file, &std::fs::read(user.home().join("numbers")).unwrap());
}

/// A machine that has been up for longer, then this one, twice: the program's clocks never go back.
#[test]
fn clocks_alone() {
    let sandbox = Sandbox::new("alone_clocks");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&held(&sandbox, victim_cmd("travel").args(["steps", "1000", "2000"])));
    let ends = ["-i", "0.2", "--exit-after-ckpt"];
    let launch = tool.verb("launch", ["-d", "images"]).args(ends).arg("--").program(&program);
    let up = ["--fork", "--time", "--monotonic", "100000", "--boottime", "100000"];
    let launch = Cmd::new("unshare").args(up).program(&launch).cwd(user.home());
    sandbox.spawn(launch).wait(SOON).expect_code(85);
    sandbox.run(tool.verb("restart", ends).arg("images")).expect_code(85);
    let last = sandbox.spawn(tool.verb("restart", ["-i", "0", "images"]));
    let_go(&sandbox);
    last.wait(SOON).success();
    let steps: String = (1..=1000).map(|step| format!("{step}\n")).collect();
    assert_eq!(std::fs::read_to_string(user.home().join("steps")).unwrap(), steps);
}

/// ckptbpf is killed, the program goes on, and is attached to where it is now.
#[test]
fn attach_alone_also_in_a_namespace_of_its_own() {
    let sandbox = Sandbox::new("alone_attach");
    let tool = Tool::of_user(&sandbox);
    let (user, binary) = (tool.user.clone().unwrap(), tool.binary.clone());
    let program = victim_cmd("count_static").args(["numbers", "3000", "2000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    job.checkpoint();
    for _ in 0..2 {
        job.kill_all();
        job.restart(Mode::Eager, &[]);
        let program = job.program();
        let all = sandbox.ps();
        let init = all.iter().find(|process| process.comm == "ckptbpf-init").expect("a namespace");
        let is_supervisor = |process: &&Process| process.comm == "ckptbpf" && process.parent == init.pid;
        let supervisor = all.iter().find(is_supervisor).expect("a supervisor in there");
        sandbox.kill(supervisor.pid, Signal::SIGKILL as i32).unwrap();
        job.lose_supervisor();
        let attach = Cmd::new(&binary).arg("attach").arg(program.to_string());
        for (who, words) in [
            (attach.clone(), "is in a user namespace of uid 4242: do this as that user"),
            (
                user.clone().in_group(4343).runs(&attach),
                "is in the groups [4242], and this is in [4242, 4343]",
            ),
        ] {
            let said = sandbox.run(who).expect_code(125).stderr_text();
            assert!(said.contains(words), "{said}");
        }
        job.attach(program, &[]);
        job.checkpoint();
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("the file", &expected.file, &std::fs::read(user.home().join("numbers")).unwrap());
}

/// What groups allow is allowed after a restart, and nothing else; that they look like others is said.
#[test]
fn what_groups_allow_alone() {
    const GROUP: u32 = 4343;
    let sandbox = Sandbox::new("alone_groups");
    let mut tool = Tool::of_user(&sandbox);
    let user = tool.user.take().unwrap().in_group(GROUP);
    tool.user = Some(user.clone());
    for (folder, group) in [("shared", GROUP), ("closed", GROUP + 1)] {
        let folder = sandbox.dir().join(folder);
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(0), Some(group)).unwrap();
        // Files in it are that group's.
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o2770)).unwrap();
    }
    let line = "import os, select\n\
        gone = open('../shared/gone', 'w+')\n\
        given = open('given', 'w+')\n\
        os.chown('given', -1, 4343)\n\
        os.unlink('../shared/gone')\n\
        os.unlink('given')\n\
        print(gone.fileno(), flush=True)\n\
        for step in range(100000):\n    \
            gone.write('x')\n    \
            gone.flush()\n    \
            assert os.fstat(gone.fileno()).st_size == step + 1\n    \
            for folder in ('shared', 'closed'):\n        \
                try:\n            \
                    open(f'../{folder}/{step}', 'w').close()\n            \
                    print(folder, step, flush=True)\n        \
                except PermissionError:\n            \
                    pass\n    \
            select.select([], [], [], 0.01)\n";
    let program = Cmd::new("/usr/bin/python3").args(["-c", line]);
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &program);
    for _ in 0..2 {
        job.running().wait_for_output("shared ", SOON);
        let gone = sandbox.see(Path::new(&format!("/proc/{}/fd/3", job.program())));
        assert_eq!(gone.metadata().unwrap().gid(), GROUP);
        job.checkpoint();
        job.kill_all();
        job.restart(Mode::Eager, &[]);
    }
    job.running().wait_for_output("shared ", SOON);
    job.program();
    let said = job.running().stderr();
    assert!(said.contains("looks as if it were in group 65534"), "{said}");
    assert!(!String::from_utf8(job.stdout()).unwrap().contains("closed"));
    job.kill_all();
}

/// Nobody tells when such a wait ends: it is longer by what passes until a checkpoint meets it, on a busy machine twice as long. One that
/// began anew with each checkpoint would never end.
#[test]
fn waits_longer_than_the_interval_end_alone() {
    const KINDS: &str = "epoll_wait,epoll_pwait2,sigtimedwait,semtimedop";
    let sandbox = Sandbox::new("alone_waits");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("sleeps").args(["6000", "2", KINDS, "100"]);
    let expected = Expected::of(&sandbox, &program, None);
    let program = user.reaches(&held(&sandbox, program));
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &["-i", "0.5"], &program);
    job.running().wait_for_output("1 sleeping", SOON);
    job.wait_for_checkpoint(job.newest() + 3);
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    let_go(&sandbox);
    job.wait(SOON * 2).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// One that a checkpoint has met goes on for what was left of it at the next one, over a restart.
#[test]
fn waits_that_a_checkpoint_has_met_end_in_time_alone() {
    let sandbox = Sandbox::new("alone_met");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("sleeps").args(["6000", "1", "epoll_wait,epoll_pwait2,sigtimedwait,semtimedop"]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &user.reaches(&program));
    job.running().wait_for_output("1 sleeping", SOON);
    job.checkpoint();
    job.running().wait_for_output("1 late", SOON);
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    job.wait(SOON * 2).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// Without namespaces nothing can be restarted, which is said before anything is made.
#[test]
fn no_restart_alone_where_users_have_no_namespaces() {
    let sandbox = Sandbox::new("alone_none");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let program = user.reaches(&victim_cmd("count_static").args(["numbers", "100000", "2000"]));
    let mut job = Job::launch_by(&sandbox, tool.clone(), user.home().join("images"), &[], &program);
    job.running().wait_for_output("\n50 ", SOON);
    job.checkpoint();
    job.kill_all();
    // In a namespace of a user, that has none below it.
    let none = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --ambient-caps=-all \"$@\"";
    let within = |cmd: &Cmd| {
        let words = ["--user", "--map-current-user", "--keep-caps", "sh", "-c", none, "sh"];
        user.runs(&Cmd::new("unshare").args(words).program(cmd))
    };
    let before = std::fs::read(user.home().join("numbers")).unwrap();
    let restart = Cmd::new(&tool.binary).args(["restart", "images"]);
    let said = sandbox.run(within(&restart)).expect_code(125).stderr_text();
    assert!(
        said.contains("only root may choose process ids here") && said.contains("user.max_user_namespaces"),
        "{said}"
    );
    sandbox.wait_until_empty(SOON);
    assert_eq!(
        std::fs::read(user.home().join("numbers")).unwrap(),
        before,
        "a refused restart changed a file"
    );
    let checked = sandbox.run(within(&Cmd::new(&tool.binary).arg("check"))).expect_code(1).stdout_text();
    assert!(checked.contains("for want of: clone3 set_tid."), "{checked}");
}

//! The box keeps its promises: it is private, it ends with its test and in time, and it fails a test that leaks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ckpt_tests::sandbox::Leak;
use ckpt_tests::{Cmd, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);

/// What the box says when `test` leaves something behind in it.
fn complaint(name: &str, limit: Duration, test: impl FnOnce(&Sandbox)) -> String {
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let sandbox = Sandbox::with_limit(name, limit);
        test(&sandbox);
    }));
    let Err(payload) = failed else { panic!("the box {name} does not fail its test") };
    payload.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// Whether `sleep MARKER` runs anywhere on this machine.
fn runs(marker: &str) -> bool {
    let lines = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let wanted = format!("sleep\0{marker}\0");
    lines
        .map(|entry| entry.path().join("cmdline"))
        .any(|path| std::fs::read(path).is_ok_and(|line| line == wanted.as_bytes()))
}

#[test]
fn output_status_and_directory_of_a_command() {
    let sandbox = Sandbox::new("command");
    let finished = sandbox.run("echo out; echo err >&2; pwd; exit 7").expect_code(7);
    assert_eq!(finished.stdout_text(), format!("out\n{}\n", sandbox.dir().display()));
    assert_eq!(finished.stderr_text(), "err\n");
    assert_eq!(sandbox.run(Cmd::sh("kill -9 $$")).code(), 137);
}

#[test]
fn a_stream_that_would_have_to_be_waited_for_is_refused() {
    let said = complaint("fifo", SOON, |sandbox| {
        let fifo = sandbox.dir().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        sandbox.run(Cmd::new("cat").stdin(&fifo));
    });
    assert!(said.contains("is a FIFO"), "{said}");
}

#[test]
fn what_threads_of_a_test_ask_for_at_once_is_answered() {
    let sandbox = Sandbox::new("at_once");
    let (nobody, gone) = (i32::MAX, Err(nix::errno::Errno::ESRCH));
    let answers = std::thread::scope(|scope| {
        let ask = || (0..200).filter(|_| sandbox.kill(nobody, libc::SIGKILL) == gone).count();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(answers, 8 * 200);
}

#[test]
fn ids_proc_and_folders_are_private() {
    let sandbox = Sandbox::new("private");
    let seen = sandbox
        .run("ls -d /proc/[0-9]* | wc -l; ls /tmp /run /dev/shm | grep -c .; echo ${XDG_RUNTIME_DIR-none}");
    let seen = seen.stdout_text();
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() < 8, "processes of others are seen: {seen}");
    assert_eq!(lines[2], "none");
    sandbox.run("echo inside > /tmp/mine").success();
    assert_eq!(std::fs::read_to_string(sandbox.root().join("tmp/mine")).unwrap(), "inside\n");
    assert!(!std::path::Path::new("/tmp/mine").exists());
}

#[test]
fn a_running_program_is_seen_from_both_sides() {
    let sandbox = Sandbox::new("both_sides");
    let running = sandbox.spawn(Cmd::new("sleep").arg("1000"));
    sandbox.wait_for("sleep to run", SOON, || sandbox.ps().iter().any(|process| process.comm == "sleep"));
    let outside = running.outside_pid().expect("it runs");
    let comm = std::fs::read_to_string(format!("/proc/{outside}/comm")).unwrap();
    assert_eq!(comm, "sleep\n");
    assert_ne!(outside, running.pid);
    running.kill(Signal::SIGTERM);
    assert_eq!(running.wait(SOON).code(), 143);
}

#[test]
fn orphans_are_reaped() {
    let sandbox = Sandbox::new("orphans");
    sandbox.run("(sleep 0.05 &) ; (sleep 0.1 &)").success();
    sandbox.wait_for("no process and no zombie", SOON, || sandbox.ps().is_empty());
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    let sandbox = Sandbox::new("signals");
    let status = sandbox.run(Cmd::new("grep").args(["-E", "^Sig(Blk|Ign)", "/proc/self/status"])).success();
    assert_eq!(status.stdout_text(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn a_program_has_the_three_standard_descriptors_and_no_more() {
    let (left_open, _other) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&left_open, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let sandbox = Sandbox::new("descriptors");
    // The fourth is the folder that ls reads.
    let seen = sandbox.run(Cmd::new("ls").arg("/proc/self/fd")).success().stdout_text();
    assert_eq!(seen, "0\n1\n2\n3\n");
}

#[test]
fn a_program_that_does_not_exist_is_named() {
    let said = complaint("missing", SOON, |sandbox| drop(sandbox.spawn(Cmd::new("/nowhere/program"))));
    assert!(said.contains("/nowhere/program"), "{said}");
}

#[test]
fn a_process_left_behind_fails_the_test() {
    let said = complaint("leftover", SOON, |sandbox| {
        sandbox.run("setsid sleep 1000 & disown").success();
    });
    assert!(said.contains("left behind") && said.contains("(sleep)"), "{said}");
}

#[test]
fn a_mount_left_behind_fails_the_test() {
    let said = complaint("mount", SOON, |sandbox| {
        sandbox.run("mkdir here && mount -t tmpfs planted here").success();
    });
    assert!(said.contains("Mount") && said.contains("planted"), "{said}");
}

#[test]
fn a_file_left_behind_fails_the_test() {
    let said = complaint("files", SOON, |sandbox| {
        sandbox.run("mkdir -p /run/ckptbpf/0 && touch /run/ckptbpf/0/socket /dev/shm/segment").success();
    });
    assert!(said.contains("/run/ckptbpf/0/socket") && said.contains("/dev/shm/segment"), "{said}");
}

#[test]
fn a_cgroup_left_behind_fails_the_test() {
    // Version 2 has one hierarchy, version 1 one for each controller.
    let roots = ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs"].map(std::path::Path::new);
    let Some(root) = roots.iter().find(|file| file.exists()).and_then(|file| file.parent()) else {
        ckpt_tests::skip::skip("a_cgroup_left_behind_fails_the_test", "no cgroups are mounted here");
        return;
    };
    // Boxes of other test processes are not to take it for theirs.
    let folder = root.join(format!("ckptbpf-of-{}", std::process::id()));
    let said = complaint("cgroup", SOON, |sandbox| {
        sandbox.run(Cmd::new("mkdir").arg(&folder)).success();
    });
    std::fs::remove_dir(&folder).unwrap();
    assert!(said.contains("Cgroup") && said.contains("ckptbpf-of-"), "{said}");
}

#[test]
fn what_is_tolerated_does_not_fail_the_test() {
    let sandbox = Sandbox::new("tolerated");
    sandbox.run("mkdir -p /run/ckptbpf/0 && touch /run/ckptbpf/0/socket").success();
    sandbox.tolerate(Leak::Run, "planted by this test");
}

#[test]
fn a_killed_test_takes_its_box_along() {
    // What init sees of a test that dies by kill -9 is the end of the socket, with no word before it.
    let (test, init) = UnixStream::pair().unwrap();
    let mut outer = std::process::Command::new(env!("CARGO_BIN_EXE_box-init"))
        .arg("60000")
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(init)))
        .spawn()
        .unwrap();
    let marker = format!("{}", 2000 + std::process::id());
    let order = format!(
        r#"{{"Spawn":{{"serial":1,"argv":["sleep","{marker}"],"env":[],"cwd":"/","stdin":"/dev/null","stdout":"/dev/null","stderr":"/dev/null"}}}}"#
    );
    (&test).write_all(order.as_bytes()).and_then(|()| (&test).write_all(b"\n")).unwrap();
    let mut lines = BufReader::new(&test).lines();
    assert!(lines.any(|line| line.unwrap().contains("Spawned")), "init ends before it starts anything");
    assert!(runs(&marker));
    drop(lines);
    drop(test);
    assert!(outer.wait().unwrap().success());
    assert!(!runs(&marker), "a sleep of the box lives on");
}

#[test]
fn everything_ends_at_the_time_limit() {
    // On a busy machine a box may end before it has begun anything.
    let mut limits = [300, 3000, 9000].map(Duration::from_millis).into_iter();
    let said = loop {
        let limit = limits.next().expect("a limit within which a program begins");
        let said = complaint("limit", limit, |sandbox| {
            sandbox.spawn(Cmd::new("sleep").arg("1000")).wait(SOON * 2);
        });
        if said.contains("(sleep)") {
            break said;
        }
    };
    assert!(said.contains("time limit of"), "{said}");
}

#[test]
fn what_did_not_come_is_named() {
    let said = complaint("named", SOON, |sandbox| {
        sandbox.wait_for("the moon", Duration::from_millis(20), || false);
    });
    assert!(said.contains("waiting for the moon: not within"), "{said}");
}

#[test]
fn everything_dies_with_the_box() {
    let marker = format!("{}", 1000 + std::process::id());
    let failed = complaint("dies", SOON, |sandbox| drop(sandbox.spawn(Cmd::new("sleep").arg(&marker))));
    assert!(failed.contains("(sleep)"), "{failed}");
    assert!(!runs(&marker), "a sleep of the box lives on");
}

#[test]
fn boxes_do_not_share_process_ids() {
    let (one, two) = (Sandbox::new("one"), Sandbox::new("two"));
    let (a, b) = (one.spawn("sleep 1000"), two.spawn("sleep 1000"));
    assert_eq!(a.pid, b.pid, "each begins counting anew");
    one.kill(a.pid, 9).unwrap();
    two.wait_for("the other one lives", SOON, || !two.ps().is_empty());
    b.kill(Signal::SIGKILL);
    assert_eq!((a.wait(SOON).code(), b.wait(SOON).code()), (137, 137));
}

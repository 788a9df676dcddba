//! Standard streams: the restarter's own take the place of those that the program was started with, and of no others.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use ckpt_tests::scenario::{
    Expected, MODES, ckptbpf, fills_done, held, let_go, python_loop, supervised, verb,
};
use ckpt_tests::{Cmd, Job, Mode, Sandbox, matrix};

const SOON: Duration = Duration::from_secs(30);

fn python(script: &str) -> Cmd {
    Cmd::new("/usr/bin/python3").args(["-c", script])
}

/// A command whose standard input is the FIFO `input`, which is there, and which it keeps open for writing itself.
fn reading(input: &str, command: &Cmd) -> Cmd {
    Cmd::sh("input=$1; shift; [ -p $input ] || mkfifo $input; exec \"$@\" 0<> $input")
        .args(["sh", input])
        .program(command)
}

fn restart(mode: Mode, images: &Path) -> Cmd {
    let lazy = if mode == Mode::Lazy { &["--lazy"][..] } else { &[] };
    verb("restart", lazy).arg(images)
}

fn checkpoint_and_end(sandbox: &Sandbox, images: &Path) {
    sandbox.run(verb("checkpoint", ["--kill"]).arg(images)).success();
}

/// Where nothing waits to be read it goes on, and does not wait; whatever the restarter's stream is.
#[test]
fn a_standard_stream_that_does_not_wait() {
    let sandbox = Sandbox::new("streams_nonblocking");
    let images = sandbox.dir().join("images");
    let begin = "
import fcntl, os
flags = lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL)
fcntl.fcntl(0, fcntl.F_SETFL, flags(0) | os.O_NONBLOCK)
";
    let body = "try: print('read', os.read(0, 1), flush=True)\nexcept BlockingIOError: print(i, [flags(fd) & os.O_NONBLOCK for fd in (0, 1, 2)], flush=True)";
    let program = held(&sandbox, python(&format!("{begin}{}", python_loop(300, 0.005, body))));
    let launch = Cmd::new(ckptbpf()).args(["launch", "-d"]).arg(&images).arg("--").program(&program);
    let mut running = sandbox.spawn(reading("first", &launch));
    running.wait_for_output("\n3 ", SOON);
    for (number, &mode) in (1..).zip([MODES, MODES].concat().iter()) {
        checkpoint_and_end(&sandbox, &images);
        running.wait(SOON).expect_code(85);
        running = sandbox.spawn(reading(&format!("input{number}"), &restart(mode, &images)));
        sandbox.wait_for("the job to be known", SOON, || supervised(&sandbox, &images).is_some());
        matrix::note(mode, number);
    }
    let_go(&sandbox);
    let printed = running.wait(SOON).success().stdout_text();
    assert!(printed.ends_with("299 [2048, 0, 0]\n"), "{printed}");
}

/// Once it is attached to, a program's standard streams are those that it has: one that leads to a process of its own, which
/// writes to `log`, leads there after a restart.
fn leads_to_its_own(name: &str, program: &Cmd) {
    let sandbox = Sandbox::new(name);
    let expected = Expected::of(&sandbox, program, Some("log")).file;
    assert!(expected.ends_with(b"\n299\n"));
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program.clone()));
    let log = || std::fs::read(sandbox.dir().join("log")).unwrap_or_default();
    let mut lazy = 0;
    for mode in [MODES, MODES].concat() {
        let before = log().len();
        sandbox.wait_for("a line in the log", SOON, || log().len() > before || log().ends_with(b"\n298\n"));
        // Without whom those that are missing would never come.
        job.program();
        sandbox.wait_for("all pages", SOON, || fills_done(&sandbox, &job) >= lazy);
        let program = job.kill_supervisor();
        job.attach(program, &[]);
        job.checkpoint();
        job.kill_all();
        job.restart(mode, &[]);
        lazy += usize::from(mode == Mode::Lazy);
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_eq!(String::from_utf8_lossy(&log()), String::from_utf8_lossy(&expected));
}

fn leads_to_a_child(name: &str, make: &str) {
    let begin = format!(
        "
import os, socket, sys
{make}
if os.fork() == 0:
    os.close(here)
    with open('log', 'ab', 0) as log:
        while data := os.read(there, 999): log.write(data)
    os._exit(0)
os.close(there), os.dup2(here, 1), os.close(here)
"
    );
    let end = "os.close(1), os.wait()\nos._exit(0)";
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, "print(i, flush=True)"));
    leads_to_its_own(name, &python(&script));
}

#[test]
fn a_standard_stream_that_is_a_pipe_to_a_child() {
    leads_to_a_child("streams_pipe", "there, here = os.pipe()");
}

#[test]
fn a_standard_stream_that_is_a_socket_to_a_child() {
    leads_to_a_child("streams_socket", "there, here = (s.detach() for s in socket.socketpair())");
}

#[test]
fn a_script_whose_output_goes_through_tee() {
    let hold =
        "while [[ $i = 299 && -n $VICTIM_HOLD && ! -e $VICTIM_HOLD ]]; do read -t 0.01 -u 8 || :; done";
    let begin = "exec 8<> <(:) > >(exec tee log > /dev/null); tee=$!";
    let line = format!("{begin}; for i in {{0..299}}; do {hold}; echo $i; read -t 0.005 -u 8 || :; done");
    leads_to_its_own("streams_tee", &Cmd::sh(&format!("{line}; exec >&-; wait $tee")));
}

/// Whoever started it so has the other end, too: the restarter's stream takes its place.
#[test]
fn a_standard_stream_whose_other_end_was_inherited() {
    let sandbox = Sandbox::new("streams_inherited");
    let images = sandbox.dir().join("images");
    let script = python_loop(300, 0.005, "print(i, flush=True)") + "print(os.read(0, 99))\n";
    let launch = Cmd::new(ckptbpf()).args(["launch", "-d"]).arg(&images).arg("--");
    let launch = launch.program(&held(&sandbox, python(&script)));
    let line = "mkfifo p; exec 7<> p 8> p 0< p 7>&-; exec \"$@\"";
    let running = sandbox.spawn(Cmd::sh(line).arg("sh").program(&launch));
    running.wait_for_output("\n3\n", SOON);
    checkpoint_and_end(&sandbox, &images);
    running.wait(SOON).expect_code(85);
    let_go(&sandbox);
    let answer = sandbox.dir().join("answer");
    std::fs::write(&answer, "word").unwrap();
    let printed = sandbox.run(restart(Mode::Eager, &images).stdin(&answer)).success().stdout_text();
    assert!(printed.ends_with("299\nb'word'\n"), "{printed}");
}

/// A FIFO with a name is the program's, to which others come by that: a server that reads commands, and keeps its FIFO open.
#[test]
fn a_standard_stream_that_is_a_fifo_of_the_program_s() {
    let sandbox = Sandbox::new("streams_fifo");
    let script = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print('heard', line.strip(), flush=True)\n";
    let line = "mkfifo cmd; exec 3<> cmd < cmd; exec \"$@\"";
    let mut job = Job::launch(&sandbox, &[], &Cmd::sh(line).arg("sh").program(&python(script)));
    job.running().wait_for_output("ready\n", SOON);
    // Before it runs, whoever opens the FIFO is somebody else who uses it.
    let mut lazy = 0;
    for (number, mode) in (0..).zip(MODES) {
        job.program();
        sandbox.run(&*format!("echo {number} > cmd")).success();
        let heard = format!("heard {number}\n");
        sandbox.wait_for("what was told", SOON, || String::from_utf8_lossy(&job.stdout()).contains(&heard));
        sandbox.wait_for("all pages", SOON, || fills_done(&sandbox, &job) >= lazy);
        let program = job.kill_supervisor();
        job.attach(program, &[]);
        job.checkpoint();
        job.kill_all();
        job.restart(*mode, &[]);
        lazy += usize::from(*mode == Mode::Lazy);
    }
    job.program();
    sandbox.run("echo last > cmd").success();
    job.running().wait_for_output("heard last\n", SOON);
    job.kill_all();
}

/// The pipe of a standard stream, opened once more for both ways, as gfortran opens /dev/stdout: what is written there goes where
/// the stream goes, after a restart too.
#[test]
fn a_standard_stream_that_is_opened_once_more() {
    let sandbox = Sandbox::new("streams_once_more");
    let images = sandbox.dir().join("images");
    let begin = "import os\nagain = os.open('/dev/stdout', os.O_RDWR)\n";
    let body = "os.write(again, b'again %d\\n' % i), os.write(1, b'%d\\n' % i)";
    let script = format!("{begin}{}", python_loop(300, 0.005, body));
    let launch = Cmd::new(ckptbpf()).args(["launch", "-d"]).arg(&images).arg("--");
    let launch = launch.program(&held(&sandbox, python(&script)));
    let piped = |cmd: &Cmd| Cmd::sh("\"$@\" | cat").arg("sh").program(cmd);
    let running = sandbox.spawn(piped(&launch));
    running.wait_for_output("\n3\n", SOON);
    checkpoint_and_end(&sandbox, &images);
    running.wait(SOON).success();
    let_go(&sandbox);
    for mode in MODES {
        let printed = sandbox.run(piped(&restart(*mode, &images))).success().stdout_text();
        assert!(printed.ends_with("again 299\n299\n"), "{printed}");
    }
}

#[test]
fn a_watched_standard_stream_that_cannot_be_watched_is_refused_by_name() {
    let sandbox = Sandbox::new("streams_watched");
    let images = sandbox.dir().join("images");
    let begin = "import select\ne = select.epoll()\ne.register(0, select.EPOLLIN)\n";
    let script = format!("{begin}{}", python_loop(300, 0.005, "print(i, e.poll(0), flush=True)"));
    let program = held(&sandbox, python(&script));
    let launch = Cmd::new(ckptbpf()).args(["launch", "-d"]).arg(&images).arg("--").program(&program);
    let running = sandbox.spawn(reading("first", &launch));
    running.wait_for_output("\n3 ", SOON);
    checkpoint_and_end(&sandbox, &images);
    running.wait(SOON).expect_code(85);
    let said = sandbox.run(restart(Mode::Eager, &images)).expect_code(125).stderr_text();
    assert!(said.contains("standard stream 0") && said.contains("/dev/null"), "{said}");
    let_go(&sandbox);
    let printed = sandbox.run(reading("second", &restart(Mode::Lazy, &images))).success().stdout_text();
    assert!(printed.ends_with("299 []\n"), "{printed}");
}

/// What were several streams in one is watched under the number that the program watches.
#[test]
fn a_watched_standard_stream_is_that_of_its_number() {
    let sandbox = Sandbox::new("streams_of_one");
    let images = sandbox.dir().join("images");
    let begin = "import select\ne = select.epoll()\ne.register(2, select.EPOLLIN)\n";
    let end = "os.write(2, b'x')\nprint([fd for fd, _ in e.poll(1)])\n";
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, "print(i, flush=True)"));
    let program = held(&sandbox, python(&script));
    let launch = Cmd::new(ckptbpf()).args(["launch", "-d"]).arg(&images).arg("--").program(&program);
    let launch = Cmd::sh("exec \"$@\" 2>&0").arg("sh").program(&launch);
    let mut running = sandbox.spawn(reading("first", &launch));
    running.wait_for_output("\n3\n", SOON);
    for &mode in MODES {
        checkpoint_and_end(&sandbox, &images);
        running.wait(SOON).expect_code(85);
        let other = Cmd::sh("exec \"$@\" 2>&0 < /dev/null").arg("sh").program(&restart(mode, &images));
        running = sandbox.spawn(reading("second", &other));
        sandbox.wait_for("the job to be known", SOON, || supervised(&sandbox, &images).is_some());
    }
    let_go(&sandbox);
    let printed = running.wait(SOON).success().stdout_text();
    assert!(printed.ends_with("299\n[2]\n"), "{printed}");
}

/// As cron jobs are kept from running twice: the lock is inherited by ckptbpf, and so by the program.
#[test]
fn a_lock_that_ckptbpf_is_started_with() {
    let sandbox = Sandbox::new("streams_flock");
    let images = sandbox.dir().join("images");
    let program = held(&sandbox, python(&python_loop(300, 0.005, "print(i, flush=True)")));
    let launch = Cmd::new(ckptbpf()).args(["launch", "-d"]).arg(&images).arg("--").program(&program);
    let locked = |command: &Cmd| Cmd::new("flock").args(["-n", "L"]).program(command);
    let mut running = sandbox.spawn(locked(&launch));
    running.wait_for_output("\n3\n", SOON);
    for (number, &mode) in (1..).zip([MODES, MODES].concat().iter()) {
        checkpoint_and_end(&sandbox, &images);
        running.wait(SOON).expect_code(85);
        running = sandbox.spawn(locked(&restart(mode, &images)));
        sandbox.wait_for("the job to be known", SOON, || supervised(&sandbox, &images).is_some());
        sandbox.run("flock -n L true").expect_code(1);
        matrix::note(mode, number);
    }
    let_go(&sandbox);
    assert!(running.wait(SOON).success().stdout_text().ends_with("299\n"));
    // Somebody else's is not taken for it.
    let other = sandbox.spawn(Cmd::sh("exec 7> L; flock 7; echo have; read <> <(:)"));
    other.wait_for_output("have\n", SOON);
    let said = sandbox.run(restart(Mode::Eager, &images)).expect_code(125).stderr_text();
    assert!(said.contains("somebody else has a lock that the program had"), "{said}");
    let said =
        sandbox.run(Cmd::sh("exec 7> L; exec \"$@\"").arg("sh").program(&restart(Mode::Eager, &images)));
    assert!(said.expect_code(125).stderr_text().contains("somebody else has a lock"));
    other.kill_group(nix::sys::signal::Signal::SIGKILL);
    other.wait(SOON);
}

//! Signals and job control: the program is reached as if it had been started bare, each time once.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Holder, listener, verb};
use ckpt_tests::{Cmd, Job, Mode, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn state(sandbox: &Sandbox, pid: i32) -> char {
    sandbox.ps().iter().find(|process| process.pid == pid).expect("the process lives").state
}

#[test]
fn a_signal_sent_to_ckptbpf_reaches_the_program_once() {
    let sandbox = Sandbox::new("forward");
    let mut job = Job::launch(&sandbox, &[], &listener());
    job.running().wait_for_output("ready\n", SOON);
    let send = |job: &Job, signal: Signal, all: &str| {
        job.running().kill(signal);
        job.running().wait_for_output(all, SOON);
    };
    send(&job, Signal::SIGTERM, "ready\n15\n");
    send(&job, Signal::SIGUSR1, "ready\n15\n10\n");
    job.checkpoint();
    send(&job, Signal::SIGHUP, "ready\n15\n10\n1\n");
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    job.program();
    send(&job, Signal::SIGINT, "2\n");
    job.running().kill(Signal::SIGUSR2);
    let rest = job.wait(SOON).expect_code(3).stdout;
    assert_eq!(String::from_utf8_lossy(&rest), "2\n12\n");
}

#[test]
fn the_checkpoint_signal_is_kept_from_the_program() {
    let sandbox = Sandbox::new("ckpt_signal");
    let mut job = Job::launch(&sandbox, &["--ckpt-signal", "USR1"], &listener());
    job.running().wait_for_output("ready\n", SOON);
    job.running().kill(Signal::SIGUSR1);
    job.wait_for_checkpoint(1);
    job.kill_all();
    // Recorded in the job: a restart keeps it too, and now the checkpoint is also the end.
    job.restart(Mode::Eager, &["--exit-after-ckpt"]);
    job.program();
    job.running().kill(Signal::SIGUSR1);
    job.wait(SOON).expect_code(85);
    assert_eq!(job.newest(), 2);
    assert_eq!(String::from_utf8_lossy(&job.stdout()), "ready\n", "the program saw the signal");
}

#[test]
fn a_program_that_stops_stops_ckptbpf_and_both_continue() {
    let sandbox = Sandbox::new("stop");
    let mut job = Job::launch(&sandbox, &[], &listener());
    job.running().wait_for_output("ready\n", SOON);
    let (ckptbpf, program) = (job.running().pid, job.program());
    for _ in 0..3 {
        sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
        sandbox.wait_for("ckptbpf to stop", SOON, || state(&sandbox, ckptbpf) == 'T');
        job.running().kill(Signal::SIGCONT);
        sandbox.wait_for("both to go on", SOON, || {
            state(&sandbox, ckptbpf) != 'T' && state(&sandbox, program) != 'T'
        });
    }
    job.checkpoint();
    job.running().kill(Signal::SIGUSR2);
    job.wait(SOON).expect_code(3);
}

/// A shell's part, on a terminal of its own: ckptbpf in a job, ^C, ^Z, fg. Prints what the job printed.
const SHELL: &str = r#"
import os, pty, signal, sys, time
out = os.dup(1)
pid, master = pty.fork()
if pid == 0:
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        os.execv(sys.argv[1], sys.argv[1:])
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        os.write(1, b"[stopped]")
        os.tcsetpgrp(0, os.getpgrp())
        os.tcsetpgrp(0, job)
        os.killpg(job, signal.SIGCONT)
    os.write(1, b"[ended %d]" % os.waitstatus_to_exitcode(status))
    os._exit(0)
seen = b""
def until(*texts):
    global seen
    while not all(text in seen for text in texts):
        try:
            seen += os.read(master, 4096)
        except OSError:
            sys.exit("no %r in %r" % (texts, seen))
    seen = seen[max(seen.index(text) + len(text) for text in texts):]
def type(text):
    os.write(master, text)
"#;

/// Prints INT and CONT as they come, and ends at the third INT. Waits on a pipe: a signal right before pause(2) would
/// be slept through.
const KEYS: &str = r#"
import os, signal, sys
wake, written = os.pipe()
os.set_blocking(written, False)
signal.set_wakeup_fd(written)
count = {2: 0, 18: 0}
def got(number, frame):
    count[number] += 1
    os.write(1, b"%s%d\n" % ({2: b"INT", 18: b"CONT"}[number], count[number]))
signal.signal(signal.SIGINT, got)
signal.signal(signal.SIGCONT, got)
print("ready", flush=True)
while count[2] < 3:
    os.read(wake, 1)
sys.exit(4)
"#;

/// One ^C is one INT; ^Z stops both, fg continues both, once; INT3 is the end.
const PRESSED: &str = r"
type(b'\x03')
until(b'INT1')
type(b'\x1a')
until(b'[stopped]')
until(b'CONT1')
type(b'\x03')
until(b'INT2')
type(b'\x1a')
until(b'[stopped]')
until(b'CONT2')
type(b'\x03')
until(b'INT3')
until(b'[ended 4]')
";

/// Presses the keys once what `begun` waits for has been seen.
fn on_a_terminal(sandbox: &Sandbox, begun: &str, cmd: &Cmd) {
    let program = format!("{SHELL}{begun}{PRESSED}\nprint('all seen')\n");
    let shell = Cmd::new("/usr/bin/python3").args(["-c", &program]).program(cmd);
    let ended = sandbox.run(shell);
    assert!(ended.stdout_text().contains("all seen"), "{} {}", ended.stdout_text(), ended.stderr_text());
}

#[test]
fn keys_of_the_terminal_reach_the_program_once() {
    let sandbox = Sandbox::new("keys");
    let launch =
        verb("launch", ["-d", "images", "--"]).program(&Cmd::new("/usr/bin/python3").args(["-c", KEYS]));
    on_a_terminal(&sandbox, "until(b'checkpoint on request', b'ready')", &launch);
}

/// Python's handlers run on the alternate stack (SA_ONSTACK) where there is one: without one, on the usual one.
#[test]
fn a_handler_that_would_run_on_an_alternate_stack_runs_without_one() {
    let sandbox = Sandbox::new("no_altstack");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", KEYS]));
    job.running().wait_for_output("ready\n", SOON);
    job.program();
    for (mode, count) in [(Mode::Eager, 1), (Mode::Lazy, 2)] {
        job.checkpoint();
        job.kill_all();
        job.restart(mode, &[]);
        job.program();
        job.running().kill(Signal::SIGINT);
        job.running().wait_for_output(&format!("INT{count}\n"), SOON);
    }
    job.running().kill(Signal::SIGINT);
    job.wait(SOON).expect_code(4);
    assert_eq!(String::from_utf8_lossy(&job.stdout()), "ready\nINT1\nINT2\nINT3\n");
}

/// Keys as above, with ckptbpf outside of the pid namespace that the program is in.
#[test]
fn keys_of_the_terminal_reach_a_program_in_a_pid_namespace_of_its_own_once() {
    let sandbox = Sandbox::new("keys_inside");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", KEYS]));
    job.running().wait_for_output("ready\n", SOON);
    let program = job.program();
    job.checkpoint();
    job.kill_all();
    let holder = Holder::of(&sandbox, program);
    let begun = "until(b'in a pid namespace of its own')\nuntil(b'checkpoint on request')";
    on_a_terminal(&sandbox, begun, &verb("restart", [job.dir()]));
    holder.end();
}

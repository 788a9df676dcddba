//! A program that has a terminal has it again: its foreground group, its modes, its keys.

use std::time::Duration;

use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{Covered, Daemon, Tool};
use ckpt_tests::{Cmd, Mode, Sandbox, assert_same, matrix};

/// A little shell: reads keys one by one in a child that leads the foreground group, and says of each whether that child
/// has the terminal, and the modes it finds. In the background it would be stopped; `q` is the end.
const PROGRAM: &str = r"
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
modes = termios.tcgetattr(0)
modes[0] &= ~termios.ICRNL
modes[3] &= ~(termios.ICANON | termios.ECHO)
modes[6][termios.VQUIT] = b'\x07'
modes[6][termios.VMIN] = 1
termios.tcsetattr(0, termios.TCSANOW, modes)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    tty = os.open('/dev/tty', os.O_RDWR)
    while True:
        print('ready', end=' ', flush=True)
        key = os.read(0, 1)
        modes = termios.tcgetattr(tty)
        print(key, os.tcgetpgrp(0) == os.getpgrp(), os.getpgrp() == os.getpid(),
              [hex(m) for m in modes[:4]], modes[6], end='!', flush=True)
        if key == b'q':
            os._exit(7)
_, status = os.waitpid(child, 0)
os.tcsetpgrp(0, os.getpgrp())
print('end', os.waitstatus_to_exitcode(status), os.tcgetpgrp(0) == os.getpgrp(), end='.', flush=True)
";

/// Runs commands, each on a new terminal as a login shell would, and prints what they print.
const DRIVER: &str = r#"
import os, pty, select, signal, subprocess, sys, termios
tool, verbs, program = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]

def session(argv, keys, end):
    leader, master = pty.fork()
    if leader == 0:
        job = os.fork()
        if job == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            # Its own words go elsewhere: they are no part of what the program prints.
            os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.execv(argv[0], argv)
        # As a shell does, which has the job still when it is stopped.
        os.waitpid(job, 0)
        os._exit(0)
    seen = b""
    def until(text):
        nonlocal seen
        begin = len(seen)
        while text not in seen[begin:]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                sys.exit("no %r in %r; %s" % (text, seen, open("said").read()))
    if argv[1] != "restart":
        until(b"ready ")
    # What is typed before the terminal has the program's modes is changed and echoed by it.
    while termios.tcgetattr(master)[3] & termios.ICANON:
        assert os.waitpid(leader, os.WNOHANG) == (0, 0), open("said").read()
        select.select([], [], [], 0.001)
    for key in keys:
        os.write(master, key)
        until(b"." if key == b"q" else b"!ready ")
    if end is not None:
        # It runs before its ckptbpf can be asked for a checkpoint.
        while b'"supervised":true' not in subprocess.run([tool, "status", "--json", "images"], capture_output=True).stdout:
            select.select([], [], [], 0.003)
        subprocess.run([tool, "checkpoint"] + end + ["images"], check=True, stdout=subprocess.DEVNULL)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
                if int(stat[3]) == leader and int(pid) != leader:
                    os.kill(int(pid), 9)
            except (FileNotFoundError, ProcessLookupError):
                pass
    os.waitpid(leader, 0)
    def session_of(pid):
        try:
            return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[3])
        except (FileNotFoundError, ProcessLookupError):
            return 0
    while leader in map(session_of, filter(str.isdigit, os.listdir("/proc"))):
        select.select([], [], [], 0.001)
    os.close(master)
    return seen

if verbs == ["bare"]:
    shown = session(program, [b"a", b"\r", b"c", b"d", b"e", b"q"], None)
else:
    shown = session([tool, "launch", "-d", "images", "--"] + program, [b"a"], [])
    shown += session([tool, "restart", "images"], [b"\r"], ["--kill"])
    shown += session([tool, "restart", "--lazy", "images"], [b"c"], [])
    shown += session([tool, "restart", "images"], [b"d"], [])
    shown += session([tool, "restart", "--lazy", "images"], [b"e"], ["--kill"])
    shown += session([tool, "restart", "--lazy", "images"], [b"q"], None)
sys.stdout.buffer.write(shown)
"#;

/// What the program prints, without ckptbpf and with it, is the same.
fn has_its_terminal_again(sandbox: &Sandbox, tool: &Tool, program: &str) {
    let program = Cmd::new("/usr/bin/python3").args(["-c", program]);
    let shown = |how: &str| {
        let driver = Cmd::new("/usr/bin/python3").args(["-c", DRIVER]).arg(&tool.binary).arg(how);
        let driver = driver.program(&program);
        let ended = sandbox.run(tool.user.as_ref().map_or_else(|| driver.clone(), |user| user.runs(&driver)));
        assert_eq!(ended.code(), 0, "{}{}", ended.stdout_text(), ended.stderr_text());
        ended.stdout
    };
    let expected = shown("bare");
    assert_eq!(String::from_utf8_lossy(&expected).matches(" True True ").count(), 6);
    assert_same("what it printed on its terminals", &expected, &shown("saved"));
    // As the driver has done it.
    let restarts = [Mode::Eager, Mode::Lazy, Mode::Eager, Mode::Lazy, Mode::Lazy];
    (1..).zip(restarts).for_each(|(number, mode)| matrix::note(mode, number));
}

#[test]
fn foreground_group_and_modes_on_another_terminal() {
    let sandbox = Sandbox::with_limit("terminal", Duration::from_secs(100));
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    has_its_terminal_again(&sandbox, &Tool::default(), PROGRAM);
}

/// The same by a daemon's worker, which has no terminal itself.
#[test]
fn foreground_group_and_modes_by_daemon() {
    let sandbox = Sandbox::with_limit("terminal_daemon", Duration::from_secs(100));
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    // In a pid namespace of its own the program cannot name the group that ckptbpf was started in.
    let program = PROGRAM
        .replace("os.tcsetpgrp(0, os.getpgrp())\n", "")
        .replace(", os.tcgetpgrp(0) == os.getpgrp(), end='.'", ", end='.'");
    has_its_terminal_again(&sandbox, &tool, &program);
    let log = daemon.end().stderr_text();
    assert_eq!(log.matches(" for process ").count(), 6, "{log}");
}

/// The same where there can be no namespaces: beside all others the program sees the group that ckptbpf was started in.
#[test]
fn foreground_group_and_modes_beside_others() {
    let sandbox = Sandbox::with_limit("terminal_beside", Duration::from_secs(100));
    let covered = Covered::of(&sandbox);
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    has_its_terminal_again(&sandbox, &tool, PROGRAM);
    let said = std::fs::read_to_string(tool.user.as_ref().unwrap().home().join("said")).unwrap();
    assert_eq!(said.matches("the program runs beside all others").count(), 5, "{said}");
    let log = daemon.end().stderr_text();
    assert_eq!(log.matches(" for process ").count(), 6, "{log}");
    covered.end();
}

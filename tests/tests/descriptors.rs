//! Descriptors of every kind come back, with their contents, positions and sharing.

// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ckpt_tests::sandbox::let_pass;
use ckpt_tests::scenario::{Expected, Survival, Tool, ckptbpf, held, let_go, python_loop, survive, verb};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Job, Mode, Sandbox, assert_same, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn every_kind_of_descriptor() {
    survive(&Survival::of("fds", victim_cmd("fds").args([".", "1500", "1000"])));
}

/// Deleted, renamed, linked and O_TMPFILE files.
#[test]
fn files_without_their_names() {
    survive(&Survival {
        rounds: 4,
        ..Survival::of("unnamed", victim_cmd("unnamed").args([".", "150", "2000"]))
    });
}

fn channels(case: &str) {
    let program = victim_cmd("channels").args([case, ".", "600", "4000"]);
    survive(&Survival { rounds: 4, ..Survival::of(case, program) });
}

#[test]
fn pipes_in_packet_mode() {
    channels("packets");
}

#[test]
fn pairs_of_sockets() {
    channels("pairs");
}

/// Made by connect(2) and accept(2): of a listener that is gone, of one that is there, between processes.
#[test]
fn connections_between_unix_sockets_with_names() {
    channels("named");
}

#[test]
fn descriptors_and_names_of_senders_on_their_way() {
    channels("carried");
}

#[test]
fn a_signalfd_watched_by_an_epoll() {
    channels("signalfd");
}

fn locks(case: &str) {
    let program = victim_cmd("locks").args([case, ".", "600", "4000"]);
    survive(&Survival { rounds: 4, ..Survival::of(case, program) });
}

#[test]
fn locks_of_processes_and_of_descriptions() {
    locks("locks");
}

#[test]
fn who_is_signalled_by_a_descriptor() {
    locks("owners");
}

#[test]
fn descriptors_of_names_alone_and_of_directories_half_read() {
    locks("paths");
}

fn handles(case: &str) {
    let program = victim_cmd("handles").args([case, ".", "600", "4000"]);
    survive(&Survival { rounds: 4, ..Survival::of(case, program) });
}

#[test]
fn pidfds_of_processes_threads_and_of_one_that_has_ended() {
    handles("pidfds");
}

/// A user's page map shows no more after a restart than before.
#[test]
fn files_of_proc_are_opened_with_the_rights_of_who_has_them() {
    handles("files");
}

#[test]
fn what_an_inotify_watches() {
    handles("inotify");
}

#[test]
fn leases_are_broken_by_others_alone() {
    handles("leases");
}

/// Program, private and shared mappings, one of them open too.
#[test]
fn files_that_were_replaced_while_they_are_run_and_mapped() {
    let program = victim_cmd("replaced").args([".", "300", "4000"]);
    survive(&Survival { rounds: 4, ..Survival::of("replaced", program) });
}

#[test]
fn a_lock_that_somebody_else_has_is_refused_at_restart_by_name() {
    let sandbox = Sandbox::new("locked");
    let script = "exec 7> mine; flock 7; exec 8<> <(:); for ((i = 1; ; i++)); do echo $i; read -t 0.01 -u 8 || :; done";
    let mut job = Job::launch(&sandbox, &[], &Cmd::sh(script));
    job.running().wait_for_output("\n3\n", SOON);
    job.checkpoint();
    job.kill_all();
    let other = sandbox.spawn(Cmd::sh("exec 7< mine; flock 7; echo have; sleep 1000"));
    other.wait_for_output("have\n", SOON);
    let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125);
    let said = refused.stderr_text();
    assert!(said.contains("somebody else has a lock that the program had"), "{said}");
    other.kill_group(nix::sys::signal::Signal::SIGKILL);
    other.wait(SOON);
}

/// The hard limit of open files.
fn most_files() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_ascii_whitespace().nth(4).unwrap().parse().unwrap_or(u64::MAX)
}

/// 1000 files and 1000 pipes: 3000 of a program that has raised its limit, and a ckptbpf that is started with 256. It gives the
/// program the limits that it was given, and no other after a restart.
#[test]
fn a_program_with_more_descriptors_than_ckptbpf_was_given() {
    const NAME: &str = "many_descriptors";
    if most_files() < 6200 {
        return skip(NAME, "the hard limit of open files is below 6200");
    }
    let sandbox = Sandbox::new(NAME);
    let binary = sandbox.dir().join("with-few");
    std::fs::write(&binary, format!("#!/bin/sh\nulimit -Sn 256\nexec {} \"$@\"\n", ckptbpf().display()))
        .unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = Cmd::sh("ulimit -Sn; exec \"$@\"")
        .arg("sh")
        .program(&victim_cmd("many").args([".", "1000", "1000", "100", "2000"]));
    let expected =
        Expected::of(&sandbox, &Cmd::sh("ulimit -Sn 256; exec \"$@\"").arg("sh").program(&program), None);
    assert!(expected.stdout.starts_with(b"256\n"));
    let tool = Tool { binary, ..Tool::default() };
    let dir = sandbox.dir().join("images");
    let mut job = Job::launch_by(&sandbox, tool, dir, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n2 ", SOON);
    for mode in [Mode::Eager, Mode::Lazy] {
        job.checkpoint();
        let program = job.kill_supervisor();
        job.attach(program, &[]);
        job.checkpoint();
        job.kill_all();
        job.restart(mode, &[]);
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// A nested epoll, one that watches a number which has been given to another file since, and one whose number was
/// closed while a duplicate lives.
#[test]
fn epolls_whose_numbers_have_moved() {
    let begin = "
import os, select
a, b = os.pipe(), os.pipe()
inner, outer, moved = select.epoll(), select.epoll(), select.epoll()
inner.register(a[0], select.EPOLLIN)
outer.register(inner.fileno(), select.EPOLLIN)
moved.register(b[0], select.EPOLLIN)
kept = os.dup(b[0])
os.dup2(a[0], b[0])
";
    let end = "
print(outer.poll(0), moved.poll(0))
os.write(a[1], b'x')
print(outer.poll(1) == [(inner.fileno(), select.EPOLLIN)], moved.poll(0))
os.write(b[1], b'yz')
print([e for _, e in moved.poll(1)] == [select.EPOLLIN], os.read(kept, 9))
";
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, "print(i, flush=True)"));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { rounds: 2, ..Survival::of("epolls", program) });
}

/// Spent entries (EPOLLONESHOT) say nothing until they are armed again, of hang-ups neither; one whose number has been given to
/// another file is among them, and one that has nothing to say at the restart.
#[test]
fn spent_entries_of_an_epoll_say_nothing() {
    let begin = "
import os, select, socket
once, e, names = select.EPOLLIN | select.EPOLLONESHOT, select.epoll(), {}
def told(end): return sorted((names[fd], hex(events)) for fd, events in e.poll(end))
def watch(name, fd, events):
    names[fd] = name
    e.register(fd, events)
    return fd
hung, edge, idle, moved, armed, quiet = [socket.socketpair() for _ in range(6)]
watch('hung', hung[0].fileno(), once), watch('edge', edge[0].fileno(), once | select.EPOLLET)
watch('moved', moved[0].fileno(), once), watch('idle', (idle := os.pipe())[0], once)
watch('armed', armed[0].fileno(), once), watch('level', quiet[0].fileno(), select.EPOLLIN)
for other in hung[1], edge[1], moved[1]: other.send(b'x')
os.write(idle[1], b'x')
print(told(1), told(0))
os.read(idle[0], 1)
hung[1].close(), edge[1].close()
kept = os.dup(moved[0].fileno())
os.dup2(armed[1].fileno(), moved[0].fileno())
moved[1].close()
";
    let end = "
os.write(idle[1], b'y'), quiet[1].send(b'z')
print(told(0), told(0))
armed[1].send(b'z')
print(told(0), told(0))
for fd in hung[0], edge[0], idle[0]: e.modify(fd, once)
print(told(0), told(0))
";
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, "print(i, told(0), flush=True)"));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { rounds: 4, ..Survival::of("spent", program) });
}

/// To find what is watched, the root of its mount is not opened: that would be an event, of which the program is told, and
/// which refuses the checkpoint.
#[test]
fn an_inotify_on_the_root_of_a_mount_hears_no_checkpoint() {
    let begin = "
import ctypes, errno, os, struct
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(fd, b'/dev/shm', 0xfff) == 1
def events():
    try: return [hex(struct.unpack_from('=iI', os.read(fd, 4096))[1])]
    except BlockingIOError: return []
";
    let end = "
os.close(os.open('/dev/shm', os.O_RDONLY))
print(events())
";
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, "print(i, events(), flush=True)"));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { rounds: 4, ..Survival::of("inotify_root", program) });
}

/// Nobody reads them until the end. One that is relative counts the time that the program has run; one that is absolute, that
/// on the wall, and stays in step with it.
#[test]
fn timers_of_the_wall_clock_that_nobody_has_read() {
    let begin = "
import ctypes, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def timer(flags, first, interval):
    fd = libc.timerfd_create(time.CLOCK_REALTIME, 0)
    spec = struct.pack('qqqq', *divmod(interval, 10**9), *divmod(first, 10**9))
    assert libc.timerfd_settime(fd, flags, spec, None) == 0
    return fd
def left(fd):
    spec = ctypes.create_string_buffer(32)
    libc.timerfd_gettime(fd, spec)
    _, _, seconds, ns = struct.unpack('qqqq', spec.raw)
    return seconds * 10**9 + ns
def ticks(fd): return struct.unpack('Q', os.read(fd, 8))[0]
def flags(fd): return next(l for l in open(f'/proc/self/fdinfo/{fd}') if 'settime flags' in l).split()[-1]
STEP, SECOND = 5 * 10**7, 10**9
begun = time.monotonic_ns()
relative = timer(0, STEP, STEP)
zero = (time.time_ns() // SECOND + 1) * SECOND
absolute = timer(1, zero, SECOND)
once = timer(0, 1, 0)
while left(absolute) > SECOND or time.time_ns() < zero: pass
";
    let end = "
ran = (time.monotonic_ns() - begun) // STEP
got = ticks(relative)
print('relative', 'as it ran' if abs(got - ran) < 20 else (got, ran), flags(relative))
before = (time.time_ns() - zero) // SECOND + 1
got = ticks(absolute)
print('absolute', 'all' if before <= got <= (time.time_ns() - zero) // SECOND + 1 else (got, before), flags(absolute))
before = time.time_ns()
due = left(absolute)
after = time.time_ns()
print('in step' if -(before + due) % SECOND <= after - before + 10**6 or (before + due) % SECOND < 10**6 else (before, due, after))
print('once', ticks(once), left(once), flags(once))
";
    let sandbox = Sandbox::new("wall_clock");
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, "print(i, flush=True)"));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n3\n", SOON);
    for mode in [Mode::Eager, Mode::Lazy, Mode::Eager] {
        job.checkpoint();
        job.kill_all();
        // What the timers are to tell apart: time in which the program does not run.
        let_pass(Duration::from_millis(2300));
        job.restart(mode, &[]);
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// On a terminal, all of 0, 1 and 2 are one: each goes to the restarter's own of its number.
#[test]
fn standard_streams_that_were_one_are_told_apart() {
    let sandbox = Sandbox::new("streams");
    let dir = sandbox.dir().join("images");
    let images = dir.display();
    let bin = ckptbpf();
    let bin = bin.display();
    let hold = "while [[ $i = 300 && ! -e $VICTIM_HOLD ]]; do read -t 0.01 -u 8 || :; done";
    let count =
        format!("for i in $(seq 300); do {hold}; echo out$i; echo err$i >&2; read -t 0.01 -u 8 || :; done");
    let line = format!("{bin} launch -d {images} -- bash -c 'exec 8<> <(:); {count}' <> both >&0 2>&0");
    let launched = sandbox.spawn(held(&sandbox, Cmd::sh(&line)));
    sandbox.wait_for("output", SOON, || {
        std::fs::read_to_string(sandbox.dir().join("both")).unwrap_or_default().contains("out5\n")
    });
    sandbox.run(verb("checkpoint", ["--kill"]).arg(&dir)).success();
    launched.wait(SOON).expect_code(85);
    let_go(&sandbox);
    let line = format!("echo old > own; {bin} restart {images} 1<> own 2> other < /dev/null");
    sandbox.run(line.as_str()).success();
    let read = |name: &str| std::fs::read_to_string(sandbox.dir().join(name)).unwrap();
    let (before, out, err) = (read("both"), read("own"), read("other"));
    let lines = |text: &str, kind: &str| -> Vec<String> {
        text.lines().filter(|l| l.starts_with(kind)).map(str::to_owned).collect()
    };
    assert!(out.starts_with("old\nout"), "a different file starts at its own end: {out}");
    assert!(lines(&out, "err").is_empty() && lines(&err, "out").is_empty(), "{out}\n{err}");
    let all = [lines(&before, "out"), lines(&out, "out")].concat();
    assert_eq!(all, (1..=300).map(|i| format!("out{i}")).collect::<Vec<_>>());
    let all = [lines(&before, "err"), lines(&err, "err")].concat();
    assert_eq!(all, (1..=300).map(|i| format!("err{i}")).collect::<Vec<_>>());
}

#[test]
fn a_file_that_was_replaced_is_refused_at_restart_by_name() {
    let sandbox = Sandbox::new("replaced");
    let input = sandbox.dir().join("input");
    std::fs::write(&input, "one\ntwo\n").unwrap();
    let script = "exec 7< input 8<> <(:); for ((i = 1; ; i++)); do echo $i; read -t 0.01 -u 8 || :; done";
    let mut job = Job::launch(&sandbox, &[], &Cmd::sh(script));
    job.running().wait_for_output("\n3\n", SOON);
    job.checkpoint();
    job.kill_all();
    std::fs::write(sandbox.dir().join("input2"), "one\ntwo\n").unwrap();
    std::fs::rename(sandbox.dir().join("input2"), &input).unwrap();
    let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125);
    assert!(refused.stderr_text().contains("input: it is another file"), "{}", refused.stderr_text());
}

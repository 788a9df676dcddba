//! Sockets that are not connected come back: bound, listening, with their options; and nobody else's address is taken.

// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{MODES, Survival, python_loop, survive, verb};
use ckpt_tests::user::UID;
use ckpt_tests::{Cmd, Job, Sandbox, User, ckptbpf, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Unix, TCP and UDP, in rounds of which each lets somebody in.
#[test]
fn sockets_that_are_bound_and_listen() {
    survive(&Survival {
        rounds: 4,
        ..Survival::of("endpoints", victim_cmd("endpoints").args(["600", "4000"]))
    });
}

/// Of TCP, both ends inside: with nothing in them, with more on its way than one end takes, half closed, left by the other.
#[test]
fn tcp_connections_inside_the_program() {
    survive(&Survival {
        rounds: 4,
        ..Survival::of("connections", victim_cmd("connections").args(["600", "4000"]))
    });
}

/// A server in Python: `make` makes the socket `s`, which answers each visitor with a line until one says `end`.
fn server(make: &str) -> Cmd {
    let script = format!(
        "import os, socket\n{make}\nprint('serves', s.getsockname(), flush=True)\nwhile True:\n    \
         c = s.accept()[0]\n    said = c.recv(99)\n    c.sendall(b'heard ' + said)\n    c.close()\n    \
         if said == b'end': break\nprint('ends', flush=True)\n"
    );
    Cmd::new("/usr/bin/python3").args(["-c", &script])
}

/// Somebody from outside, to whom the server answers.
fn visit(sandbox: &Sandbox, connect: &str, word: &str) {
    let script = format!(
        "import socket\n{connect}\nc.sendall(b'{word}')\nprint(b''.join(iter(lambda: c.recv(99), b'')).decode())\n"
    );
    let heard = sandbox.run(Cmd::new("/usr/bin/python3").args(["-c", &script])).success().stdout_text();
    assert_eq!(heard.trim(), format!("heard {word}"));
}

const PORT: &str = "s = socket.create_server(('127.0.0.1', 7070))";
const TO_PORT: &str = "c = socket.create_connection(('127.0.0.1', 7070))";
const PATH: &str = "s = socket.socket(socket.AF_UNIX)\ns.bind('name')\ns.listen()";
const TO_PATH: &str = "c = socket.socket(socket.AF_UNIX)\nc.connect('name')";

/// A server that has been checkpointed and killed.
fn killed<'a>(sandbox: &'a Sandbox, make: &str) -> Job<'a> {
    let mut job = Job::launch(sandbox, &[], &server(make));
    job.running().wait_for_output("serves", SOON);
    job.checkpoint();
    job.kill_all();
    job
}

/// Each restart from the first checkpoint, then from one that was taken since.
fn serves_again(name: &str, make: &str, connect: &str) {
    let sandbox = Sandbox::new(name);
    let mut job = Job::launch(&sandbox, &[], &server(make));
    job.running().wait_for_output("serves", SOON);
    for mode in MODES {
        visit(&sandbox, connect, "before");
        job.checkpoint();
        job.kill_all();
        job.restart(*mode, &[]);
        job.program();
        visit(&sandbox, connect, "after");
    }
    visit(&sandbox, connect, "end");
    job.wait(SOON).success();
    assert!(String::from_utf8_lossy(&job.stdout()).ends_with("ends\n"));
}

/// A server with a connection to somebody outside: each checkpoint says so, and the server goes on.
#[test]
fn a_tcp_connection_to_the_outside_is_refused_by_name() {
    let sandbox = Sandbox::new("outside");
    let mut job = Job::launch(&sandbox, &[], &server(PORT));
    job.running().wait_for_output("serves", SOON);
    let stays = format!("import socket\n{TO_PORT}\nprint('connected', flush=True)\nc.recv(1)");
    let other = sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", &stays]));
    other.wait_for_output("connected", SOON);
    // Until it has let the other one in, that one waits to be accepted.
    sandbox.wait_for("a refusal that names the other end", SOON, || {
        let said = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125).stderr_text();
        ["it is connected to 127.0.0.1:", "(python3) has, outside the program"]
            .iter()
            .all(|word| said.contains(word))
    });
    other.kill_group(Signal::SIGKILL);
    other.wait(SOON);
    // The server reads its end.
    sandbox.wait_for("a checkpoint", SOON, || sandbox.run(verb("checkpoint", [job.dir()])).code() == 0);
    job.kill_all();
    job.restart(ckpt_tests::Mode::Lazy, &[]);
    job.program();
    visit(&sandbox, TO_PORT, "end");
    job.wait(SOON).success();
}

/// Two ends, one of them at `port`, and more on its way than the other takes. It goes on at USR1.
fn talk(port: u16) -> Cmd {
    let script = format!(
        "import signal, socket\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
         s = socket.create_server(('127.0.0.1', {port}))\nc = socket.create_connection(('127.0.0.1', {port}))\n\
         a = s.accept()[0]\ns.close()\nc.setblocking(False)\nsent = 0\n\
         try:\n    while True: sent += c.send(b'x' * 10000)\nexcept BlockingIOError: pass\nprint('full', flush=True)\n\
         signal.sigwait([signal.SIGUSR1])\nc.setblocking(True)\nc.shutdown(socket.SHUT_WR)\n\
         got = sum(map(len, iter(lambda: a.recv(1 << 20), b'')))\n\
         print('all' if got == sent else (got, sent), flush=True)\n"
    );
    Cmd::new("/usr/bin/python3").args(["-c", &script])
}

#[test]
fn a_port_of_a_connection_at_which_somebody_listens_is_refused_by_name() {
    let sandbox = Sandbox::new("taken_end");
    let mut job = Job::launch(&sandbox, &[], &talk(7071));
    job.running().wait_for_output("full", SOON);
    job.checkpoint();
    job.kill_all();
    let other = sandbox.spawn(server("s = socket.create_server(('127.0.0.1', 7071))"));
    other.wait_for_output("serves", SOON);
    refused(
        &sandbox,
        &job,
        &["the program had a connection", "127.0.0.1:7071", "(python3) listens at port 7071 now"],
    );
    other.kill_group(Signal::SIGKILL);
    other.wait(SOON);
    job.restart(ckpt_tests::Mode::Eager, &[]);
    let pid = job.program();
    sandbox.kill(pid, Signal::SIGUSR1 as i32).unwrap();
    job.wait(SOON).success();
    assert!(String::from_utf8_lossy(&job.stdout()).ends_with("all\n"));
}

/// Connections of the one that was killed linger under its port.
#[test]
fn visitors_come_to_a_port_after_a_restart() {
    serves_again("port", PORT, TO_PORT);
}

#[test]
fn visitors_come_to_a_path_after_a_restart() {
    serves_again("path", PATH, TO_PATH);
}

fn refused(sandbox: &Sandbox, job: &Job<'_>, words: &[&str]) {
    let said = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
fn a_port_that_somebody_has_is_refused_at_restart_by_name() {
    let sandbox = Sandbox::new("taken_port");
    let mut job = killed(&sandbox, PORT);
    let other = sandbox.spawn(server(PORT));
    other.wait_for_output("serves", SOON);
    refused(&sandbox, &job, &["TCP port 7070", "(python3) has it now"]);
    visit(&sandbox, TO_PORT, "still there");
    other.kill_group(Signal::SIGKILL);
    other.wait(SOON);
    job.restart(ckpt_tests::Mode::Eager, &[]);
    job.program();
    visit(&sandbox, TO_PORT, "end");
    job.wait(SOON).success();
}

#[test]
fn a_port_under_which_connections_linger_is_refused_by_name() {
    let sandbox = Sandbox::new("lingers");
    let make = "s = socket.socket()\ns.bind(('127.0.0.1', 7070))\ns.listen()";
    let mut job = Job::launch(&sandbox, &[], &server(make));
    job.running().wait_for_output("serves", SOON);
    visit(&sandbox, TO_PORT, "before");
    job.checkpoint();
    job.kill_all();
    refused(&sandbox, &job, &["TCP port 7070", "connections that have ended linger under it"]);
}

#[test]
fn an_abstract_name_that_somebody_has_is_refused_at_restart_by_name() {
    let sandbox = Sandbox::new("taken_name");
    let make = "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0the name')\ns.listen()";
    let job = killed(&sandbox, make);
    let other = sandbox.spawn(server(make));
    other.wait_for_output("serves", SOON);
    refused(&sandbox, &job, &["@the name", "somebody has it now"]);
    other.kill_group(Signal::SIGKILL);
    other.wait(SOON);
}

/// What is not the program's own stale socket is left where it is.
#[test]
fn a_path_that_somebody_has_is_refused_at_restart_by_name() {
    let sandbox = Sandbox::new("taken_path");
    let mut job = killed(&sandbox, PATH);
    let path = sandbox.dir().join("name");
    std::fs::remove_file(&path).unwrap();
    let other = sandbox.spawn(server(PATH));
    other.wait_for_output("serves", SOON);
    refused(&sandbox, &job, &["/name: the program had a socket there", "(python3) has it now"]);
    visit(&sandbox, TO_PATH, "still there");
    other.kill_group(Signal::SIGKILL);
    other.wait(SOON);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    refused(&sandbox, &job, &["/name: the program had a socket there", "what is there now is none"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    // A place that is free, and one that a dead socket of somebody else has.
    let bind = "import socket\nsocket.socket(socket.AF_UNIX).bind('name')";
    for left in ["pass", bind] {
        sandbox.run(Cmd::new("/usr/bin/python3").args(["-c", left])).success();
        job.restart(ckpt_tests::Mode::Eager, &[]);
        job.program();
        visit(&sandbox, TO_PATH, "word");
        job.kill_all();
        std::fs::remove_file(&path).unwrap();
    }
}

/// A restart that fails after sockets were named takes the names away again, and leaves the file that was there.
#[test]
fn a_restart_that_fails_leaves_no_name_behind() {
    let sandbox = Sandbox::new("no_name");
    std::fs::create_dir(sandbox.dir().join("later")).unwrap();
    let make = format!("{PATH}\nt = socket.socket(socket.AF_UNIX)\nt.bind('later/' + 97 * 'x')\nt.listen()");
    let job = killed(&sandbox, &make);
    let name = sandbox.dir().join("name");
    let hold = sandbox.dir().join("later");
    // The directory takes no file: whoever looks first finds nothing wrong.
    let stale = std::fs::read_dir(&hold).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(stale).unwrap();
    sandbox.run(Cmd::new("mount").args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(&hold)).success();
    refused(&sandbox, &job, &["later/x", "cannot be had"]);
    assert!(name.symlink_metadata().is_ok(), "the stale socket has gone");
    std::fs::remove_file(&name).unwrap();
    refused(&sandbox, &job, &["later/x", "cannot be had"]);
    assert!(name.symlink_metadata().is_err(), "a name is left behind");
    sandbox.run(Cmd::new("umount").arg(&hold)).success();
}

/// Root may have given a user's program the port; that image's owner has no right to it. `words`: of the restart without it.
/// With it, the program is there again, and `end` ends it.
fn low_port(name: &str, program: &Cmd, ready: &str, words: &[&str], end: impl FnOnce(&Sandbox, i32)) {
    let sandbox = Sandbox::new(name);
    let user = User::of(&sandbox);
    let tool = Cmd::new(user.copy_of(&ckptbpf()));
    let first = |port: u32| {
        let line = format!("echo {port} > /proc/sys/net/ipv4/ip_unprivileged_port_start");
        sandbox.run(line.as_str()).success();
    };
    let launch = tool.clone().args(["launch", "-d", "images", "--"]).program(program);
    first(80);
    let running = sandbox.spawn(user.runs_by_sudo(&launch));
    running.wait_for_output(ready, SOON);
    sandbox.run(user.runs_by_sudo(&tool.clone().args(["checkpoint", "--kill", "images"]))).success();
    running.wait(SOON).expect_code(85);
    first(1024);
    let restart = user.runs_by_sudo(&tool.clone().args(["restart", "images"]));
    let said = sandbox.run(restart.clone()).expect_code(125).stderr_text();
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    first(80);
    let running = sandbox.spawn(restart);
    let status = user.runs_by_sudo(&tool.clone().args(["status", "images"]));
    sandbox.wait_for("the restart", SOON, || sandbox.run(status.clone()).code() == 0);
    let owner = sandbox.run("stat -c %u home/images/000001.ckpt").success().stdout_text();
    assert_eq!(owner.trim(), UID.to_string());
    let pid = sandbox.ps().into_iter().find(|one| one.comm == "python3").expect("the program").pid;
    end(&sandbox, pid);
    running.wait(SOON).success();
}

#[test]
fn a_port_that_only_root_may_have_is_not_had_by_a_user_s_image() {
    let program = server("s = socket.create_server(('127.0.0.1', 80))");
    low_port(
        "low_port",
        &program,
        "serves",
        &["TCP port 80", "only root's images may have"],
        |sandbox, _| {
            visit(sandbox, "c = socket.create_connection(('127.0.0.1', 80))", "end");
        },
    );
}

#[test]
fn a_connection_at_a_port_that_only_root_may_have_is_not_had_by_a_user_s_image() {
    let words = ["the program had a connection", "127.0.0.1:80", "Permission denied"];
    low_port("low_connection", &talk(80), "full", &words, |sandbox, pid| {
        sandbox.kill(pid, Signal::SIGUSR1 as i32).unwrap();
    });
}

/// What is held back until there is more of it (TCP_CORK, MSG_MORE) comes once, in order, and after what is still held back.
#[test]
fn what_a_tcp_connection_holds_back_is_not_lost() {
    let begin = "
import socket
server = socket.create_server(('127.0.0.1', 0))
def connection():
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0]
corked, more = connection(), connection()
corked[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
sent = b''
";
    let body = "part = b'%d ' % i\nsent += part\ncorked[0].send(part), more[0].send(part, socket.MSG_MORE)\nprint(i, flush=True)";
    let end = "
print(corked[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
for client, other in corked, more:
    client.close()
    got = b''
    while part := other.recv(999): got += part
    print(got == sent or (got, sent))
";
    let script = format!("{begin}{}{end}", python_loop(300, 0.005, body));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { rounds: 4, ..Survival::of("corked", program) });
}

//! Users who want of a daemon what they are not to have: each gets a refusal, and whoever else has a job notices nothing.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool, beside_a_job, daemon_client, held, let_go};
use ckpt_tests::user::{OTHER, UID};
use ckpt_tests::{Cmd, Expected, Sandbox, assert_same, skip, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn python(tool: &Tool, lines: &str) -> Cmd {
    daemon_client(tool.user.as_ref().unwrap(), lines)
}

/// What is no message, or half of one, or more than one.
#[test]
fn messages_that_are_none() {
    beside_a_job("attack_messages", &[], |sandbox, _daemon, tool| {
        let lines = "
assert refusal(b'x') == 1
assert refusal(os.urandom(64)) == 1
assert refusal(message(HELLO, b'')) == 1
assert refusal(message(HELLO, struct.pack('II', 9, 0))) == 1
for wants in (WORKER, FAULTS, IDS):
    assert refusal(message(HELLO, struct.pack('II', wants, BUILD ^ 1)), [os.pidfd_open(os.getpid())]) in (1, 2)
    assert refusal(message(HELLO, struct.pack('II', wants, BUILD ^ 1))) == 2
assert refusal(message(HELLO, struct.pack('II', QUERY, 0), version=2)) == 2
assert refusal(message(HELLO, struct.pack('II', QUERY, 0), length=9)) == 1
assert refusal(message(HELLO, struct.pack('II', QUERY, 0), magic=b'DMTC')) == 1
for kind in (0, WELCOME, REFUSED, DEVICE, FEATURES, DONE, NEXT_ID, 256, 65535):
    assert refusal(message(kind, b'\\0' * 8)) == 1, kind
assert refusal(b'CKD1' * 17000) == 1
# More descriptors than a message of ours brings.
assert refusal(hello(QUERY), [0] * 200) == 1
for _ in range(300):
    asked(os.urandom(100), [0] * 8)
# Some of those may not be over yet.
until = time.monotonic() + 20
while asked(hello(QUERY))[0] != WELCOME:
    assert time.monotonic() < until
";
        sandbox.run(python(tool, lines)).success();
    });
}

/// Connections without a word, and clients that read nothing.
#[test]
fn connections_without_number() {
    beside_a_job("attack_connections", &[], |sandbox, _daemon, tool| {
        let lines = "
held = []
for _ in range(400):
    client = connect()
    held.append(client)
print('held', flush=True)
# Those beyond what a user may have are refused at once, the others when they have said nothing for a while.
for client in held:
    assert client.recv(100)[6:8] == struct.pack('H', REFUSED)
";
        let attack = sandbox.spawn(python(tool, lines));
        attack.wait_for_output("held", SOON);
        // Another user, who is not root either, is answered at once.
        let said = sandbox.run(Tool::of_user(sandbox).verb("daemon", ["--check"])).success().stdout_text();
        assert!(said.contains(": 1 of 32 jobs of this user"), "{said}");
        attack.wait(SOON).success();
    });
}

/// Connections with something in them that takes an hour to be closed, more than the daemon has threads: those who are refused, too.
#[test]
fn connections_that_linger() {
    const NAME: &str = "connections_that_linger";
    beside_a_job("attack_linger", &[], |sandbox, _daemon, tool| {
        let lines = "
import resource, select, threading
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
listener.bind(('127.0.0.1', 0))
listener.listen(16)
held = []
def lingering():
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    one.connect(listener.getsockname())
    held.append(listener.accept()[0])
    one.setblocking(False)
    try:
        while True:
            one.send(bytes(4096))
    except BlockingIOError:
        pass
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 3600))
    return one
for _ in range(700):
    client, one = connect(), lingering()
    try:
        send(client, b'x', [one.fileno()])
        # Should it be the last one by now, this takes an hour, too.
        threading.Thread(target=one.close, daemon=True).start()
    except PermissionError:
        print('refused by the kernel', flush=True)
        os._exit(0)
    except BrokenPipeError:
        held.append(one)
    client.close()
print('all sent', flush=True)
select.select([], [], [])
";
        let attack = sandbox.spawn(python(tool, lines));
        attack.wait_for_output("\n", SOON);
        if String::from_utf8_lossy(&attack.stdout()).contains("refused by the kernel") {
            skip::skip_part(NAME, "this kernel (Linux 6.16 or later) takes no descriptors for the daemon");
            attack.wait(SOON).success();
            return;
        }
        let victim = Tool::of_user(sandbox);
        sandbox.run(victim.verb("daemon", ["--check"])).success();
        let images = victim.user.clone().unwrap().home().join("images");
        sandbox.run(victim.verb("checkpoint", [images])).success();
        attack.kill(Signal::SIGKILL);
        attack.wait(SOON).expect_code(137);
    });
}

/// A worker that is not answered as only its user could answer gives up; so does one whose client goes away at any point.
#[test]
fn challenges_that_are_not_met() {
    beside_a_job("attack_challenge", &[], |sandbox, _daemon, tool| {
        let lines = "
def word(number, body):
    return message(256, bytes([number << 3 | 2, len(body)]) + body)
def begun():
    client = asks_for_worker()
    kind, body, _ = answer(client)
    assert kind == 256, (kind, body)
    return client
client = begun()
send(client, word(2, b'0' * 16))
kind, body, _ = answer(client)
assert (kind, struct.unpack('I', body[:4])[0]) == (REFUSED, 12), (kind, body)
for wrong in (b'', word(2, b''), word(3, b''), hello(WORKER), os.urandom(40)):
    client = begun()
    send(client, wrong or b'x')
    client.close()
begun().close()
";
        sandbox.run(python(tool, lines)).success();
    });
}

/// Who traces what a worker has shown to its front keeps that from being gone: it is one of their jobs as long as they do.
#[test]
fn challenges_that_are_kept_are_jobs_of_their_user() {
    beside_a_job("attack_kept", &["--jobs", "2"], |sandbox, _daemon, tool| {
        let lines = "
import ctypes, select
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
def begun():
    client = asks_for_worker()
    kind, body, _ = answer(client)
    return client, kind, body
def number(data):
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value
def stat(pid):
    with open(f'/proc/{pid}/stat') as file:
        return file.read().rsplit(')', 1)[1].split()
def wait_for(what, is_so):
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until, what
        select.select([], [], [], 0.01)
kept = []
for _ in range(2):
    client, kind, body = begun()
    assert (kind, body[0], body[2]) == (256, 10, 8), (kind, body)
    shown = number(body[3:])
    worker = stat(shown)[1]
    assert libc.ptrace(0x4206, shown, None, None) == 0, ctypes.get_errno()
    client.close()
    wait_for('the worker to be gone', lambda: not os.path.exists(f'/proc/{worker}'))
    assert stat(shown)[0] == 'Z'
    kept.append(shown)
for _ in range(20):
    client, kind, body = begun()
    assert (kind, struct.unpack('I', body[:4])[0]) == (REFUSED, 5), (kind, body)
    select.select([], [], [], 0.05)
for shown in kept:
    os.waitpid(shown, 0x40000000)
def is_served():
    client, kind, _ = begun()
    client.close()
    return kind == 256
wait_for('a worker', is_served)
";
        sandbox.run(python(tool, lines)).success();
    });
}

/// What is lent for lazy restarts takes a userfaultfd, and nothing else is touched.
#[test]
fn what_is_no_userfaultfd_is_left_alone() {
    beside_a_job("attack_faults", &[], |sandbox, _daemon, tool| {
        let lines = "
import ctypes
client = connect()
send(client, hello(FAULTS))
kind, body, fds = answer(client)
assert kind == DEVICE and len(fds) == 1, (kind, body)
libc = ctypes.CDLL(None, use_errno=True)
own = libc.syscall(323, 0o2000001)
assert own >= 0, ctypes.get_errno()
null, zero = os.open('/dev/null', os.O_RDWR), os.open('/dev/zero', os.O_RDONLY)
pair = socket.socketpair()
events = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
def features(bits, fds):
    send(client, message(FEATURES, struct.pack('Q', bits)), fds)
    kind, body, _ = answer(client)
    assert kind == DONE, kind
    return struct.unpack('I', body[:4])[0]
for fd in (null, zero, pair[0].fileno(), os.pidfd_open(os.getpid()), os.memfd_create('userfaultfd'), fds[0]):
    assert features(events, [fd]) == 22, fd
for bits in (0, 1, events | 1, 1 << 63, events ^ 2):
    assert features(bits, [own]) == 22, bits
assert features(events, [own]) == 0
# Without one, the client is dropped.
send(client, message(FEATURES, struct.pack('Q', events)))
kind, body, _ = answer(client)
assert (kind, body[:1]) == (REFUSED, b'\\1'), (kind, body)
assert answer(client)[0] is None
";
        sandbox.run(python(tool, lines)).success();
    });
}

/// A daemon for one user, or for one job, serves no other; a socket of a user's own is no daemon's.
#[test]
fn daemons_of_others() {
    let sandbox = Sandbox::new("attack_others");
    let tool = Tool::of_user(&sandbox);
    let user = tool.user.clone().unwrap();
    let other = (UID + 1).to_string();
    let launch = |dir: &str| Cmd::new(&tool.binary).args(["launch", "-d", dir, "--", "/bin/true"]);
    let daemon = Daemon::begin(&sandbox, &["--uid", &other]);
    // Its socket is closed to whoever is not meant.
    let socket = sandbox.see("/run/ckptbpf/daemon.sock".as_ref());
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(&socket).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (UID + 1, 0o600));
    let said = sandbox.run(user.runs(&launch("a"))).success().stderr_text();
    assert_eq!(said, "", "a daemon that is closed to us is none");
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let said = sandbox.run(user.runs(&launch("b"))).success().stderr_text();
    assert!(said.contains("is done without: it is there for another user"), "{said}");
    daemon.end();
    // One of a user's own, which asks for the command line and would say anything.
    let lines = "
import os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind(sys.argv[1])
server.listen()
print('listens', flush=True)
client, _ = server.accept()
assert client.recv(100) == b'', 'something was said to it'
";
    let place = user.home().join("own.sock");
    let server = Cmd::new("/usr/bin/python3").args(["-c", lines]).arg(&place);
    let server = sandbox.spawn(user.runs(&server));
    server.wait_for_output("listens", SOON);
    let asks = launch("c").env("CKPTBPF_SOCKET", place.to_str().unwrap());
    let said = sandbox.run(user.runs(&asks)).success().stderr_text();
    assert!(said.contains(&format!("it is uid {UID}'s, and a daemon is root's")), "{said}");
    server.wait(SOON).success();
}

/// Ids that differ, a root directory of its own, a filter, Landlock: none has a worker, and each is told why.
#[test]
fn who_is_held_back_has_no_worker() {
    beside_a_job("attack_held_back", &[], |sandbox, _daemon, tool| {
        let user = tool.user.clone().unwrap();
        let launch = |dir: &str| Cmd::new(&tool.binary).args(["launch", "-d", dir, "--", "/bin/true"]);
        let is_said = |cmd: Cmd, words: &str| {
            let said = sandbox.run(cmd).success().stderr_text();
            assert!(said.contains("is done without: ") && said.contains(words), "{said}");
        };
        let id = OTHER.to_string();
        // As a set-group-id program has it.
        let ids = ["--reuid", &id, "--rgid", &id, "--egid", "4343", "--clear-groups", "--"];
        let as_group = Cmd::new("setpriv").args(ids).program(&launch("/tmp/a"));
        is_said(as_group.cwd(user.home()), "set-user-id or set-group-id");
        // Directories of this machine's in another root.
        let line = "set -e; new=$1; shift; mkdir $new; for one in usr bin lib lib64 proc run dev tmp var; do \
            [ -e /$one ] || continue; mkdir $new/$one; mount --rbind /$one $new/$one; done; \
            exec chroot --userspec=4243:4243 $new \"$@\"";
        let root = sandbox.dir().join("root");
        let within = Cmd::new("unshare").args(["-m", "sh", "-c", line, "sh"]).arg(&root);
        is_said(within.program(&launch("/tmp/d")), "a root directory of its own");
        let filter = "
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 1, ctypes.addressof(allow)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
";
        let script = format!("import os\n{filter}");
        let python = |script: &str, dir: &str| {
            user.runs(&Cmd::new("/usr/bin/python3").args(["-c", script]).program(&launch(dir)))
        };
        is_said(python(&script, "b"), "a filter of system calls");
        // Landlock alone: it may still make files, and may trace nobody outside.
        let landlock = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
rules = libc.syscall(444, ctypes.create_string_buffer(struct.pack('Q', 1 << 12)), 8, 0)
assert rules >= 0, ctypes.get_errno()
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(446, rules, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
";
        is_said(python(landlock, "c"), "may not trace its own user's");
    });
}

/// Fifty jobs at once, and a daemon that is killed and replaced under them: their workers go on.
#[test]
fn fifty_jobs_and_a_daemon_that_is_killed() {
    const JOBS: usize = 50;
    let sandbox = Sandbox::with_limit("attack_fifty", Duration::from_secs(170));
    let daemon = Daemon::begin(&sandbox, &["--jobs", "64"]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let program = victim_cmd("count_static").args(["numbers", "400", "1000"]);
    let expected = Expected::of(&sandbox, &program, Some("numbers"));
    let program = user.reaches(&held(&sandbox, program));
    let line = format!(
        "mkdir $1 && cd $1 && shift && exec {} launch -i 3 -d images -- \"$@\"",
        tool.binary.display()
    );
    let begin = |job: usize| {
        let job = format!("job{job}");
        sandbox.spawn(user.runs(&Cmd::new("/bin/sh").args(["-c", &line, "sh", &job]).program(&program)))
    };
    let jobs: Vec<_> = (0..JOBS).map(begin).collect();
    let check = tool.verb("daemon", ["--check"]);
    sandbox.wait_for("all to have a worker", SOON * 2, || {
        sandbox.run(&check).stdout_text().contains(": 50 of 64 jobs of this user")
    });
    daemon.kill();
    let newest = |job: usize| -> u64 {
        let files = std::fs::read_dir(user.home().join(format!("job{job}/images"))).into_iter().flatten();
        let names = files.flatten().filter_map(|file| file.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".ckpt")?.parse::<u64>().ok()).max().unwrap_or(0)
    };
    let before: Vec<u64> = (0..JOBS).map(newest).collect();
    let daemon = Daemon::begin(&sandbox, &["--jobs", "64"]);
    sandbox.wait_for("a checkpoint of each without their daemon", SOON * 2, || {
        (0..JOBS).all(|job| newest(job) > before[job])
    });
    sandbox.wait_for("all to ask the new one", SOON * 2, || {
        sandbox.run(&check).stdout_text().contains(": 50 of 64 jobs of this user")
    });
    let_go(&sandbox);
    for (number, job) in jobs.into_iter().enumerate() {
        let ended = job.wait(SOON * 3).success();
        assert_same(&format!("output of job {number}"), &expected.stdout, &ended.stdout);
        let file = std::fs::read(user.home().join(format!("job{number}/numbers"))).unwrap();
        assert_same(&format!("file of job {number}"), &expected.file, &file);
    }
    sandbox.wait_for("all to be over", SOON, || sandbox.ps().len() == 1);
    daemon.end();
}

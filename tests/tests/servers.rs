//! Servers as they are in use, checkpointed and killed: all that they hold is there, and clients come again.

// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use ckpt_tests::scenario::{MODES, held, let_go};
use ckpt_tests::{Cmd, Expected, Job, Sandbox, assert_same, skip};

const SOON: Duration = Duration::from_secs(30);

/// What is in Debian's redis-tools: the server under the name of one of its tools. No service comes with it.
const REDIS: &str = "/usr/bin/redis-check-rdb";
const NODE: &str = "/usr/bin/node";

fn is_missing(test: &str, program: &str) -> bool {
    let missing = !Path::new(program).exists();
    if missing {
        skip::skip(test, &format!("there is no {program}"));
    }
    missing
}

/// A client of redis: connects as told, and does what is in `ACT` with keys of round `n`.
const CLIENT: &str = r#"
import socket, sys
how, act, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
if how == 'tcp':
    s = socket.create_connection(('127.0.0.1', 7379))
else:
    s = socket.socket(socket.AF_UNIX)
    s.connect('redis.socket')
f = s.makefile('rb')

def reply():
    line = f.readline()
    kind, rest = line[:1], line[1:-2]
    if kind == b'$':
        return None if rest == b'-1' else f.read(int(rest) + 2)[:-2]
    if kind == b'*':
        return [reply() for _ in range(int(rest))]
    assert kind in b'+:', line
    return rest

def ask(calls):
    word = lambda w: b'$%d\r\n%s\r\n' % (len(w), w)
    got = []
    for at in range(0, len(calls), 500):
        some = [[str(w).encode() for w in call.split(' ')] for call in calls[at:at + 500]]
        s.sendall(b''.join(b'*%d\r\n' % len(c) + b''.join(map(word, c)) for c in some))
        got += [reply() for _ in some]
    return got

keys = range(n * 3000, n * 3000 + 3000)
text = lambda i: 'value-%d-' % i + chr(97 + i % 26) * (i * 7 % 400)
if act == 'fill':
    ask(['SET key:%d %s' % (i, text(i)) for i in keys])
    ask(['RPUSH list:%d %d %d' % (i % 50, i, i * i) for i in keys])
    ask(['HSET hash:%d field%d %d' % (i % 70, i, -i) for i in keys])
    ask(['SET passing:%d x PX 100000000' % n])
else:
    got = ask(['GET key:%d' % i for i in range((n + 1) * 3000)])
    assert got == [text(i).encode() for i in range((n + 1) * 3000)], 'strings'
    for name in range(50):
        want = [str(v).encode() for i in range((n + 1) * 3000) if i % 50 == name for v in (i, i * i)]
        assert ask(['LRANGE list:%d 0 -1' % name])[0] == want, 'lists'
    for name in range(70):
        want = {b'field%d' % i: b'%d' % -i for i in range((n + 1) * 3000) if i % 70 == name}
        flat = ask(['HGETALL hash:%d' % name])[0]
        assert dict(zip(flat[::2], flat[1::2])) == want, 'hashes'
    assert all(0 < int(ask(['PTTL passing:%d' % i])[0]) <= 100000000 for i in range(n + 1)), 'times'
    assert ask(['DBSIZE'])[0] == b'%d' % ((n + 1) * 3000 + 120 + n + 1), 'no other keys'
print('done', flush=True)
if act == 'hold':
    sys.stdin.read()
"#;

fn client(how: &str, act: &str, n: u32) -> Cmd {
    Cmd::new("/usr/bin/python3").args(["-c", CLIENT, how, act, &n.to_string()])
}

/// Once the server has seen that its last client is gone.
fn checkpoint(sandbox: &Sandbox, job: &Job<'_>) {
    sandbox.wait_for("a checkpoint between two clients", SOON, || {
        let tried = job.try_checkpoint();
        let (is_done, said) = (tried.code() == 0, tried.stderr_text());
        let passing = ["it is connected", "its connection has ended", "wait to be accepted"];
        assert!(is_done || passing.iter().any(|reason| said.contains(reason)), "{said}");
        is_done
    });
}

#[test]
fn redis() {
    if is_missing("redis", REDIS) {
        return;
    }
    let sandbox = Sandbox::new("redis");
    let server = sandbox.dir().join("redis-server");
    symlink(REDIS, &server).unwrap();
    let program =
        Cmd::new(&server).args(["--port", "7379", "--bind", "127.0.0.1", "--unixsocket", "redis.socket"]);
    let mut job = Job::launch(&sandbox, &[], &program.args(["--save", "", "--appendonly", "no"]));
    job.running().wait_for_output("Ready to accept connections", SOON);
    sandbox.wait_for("its socket", SOON, || sandbox.dir().join("redis.socket").exists());
    for (n, mode) in (0..4).zip(MODES.iter().cycle()) {
        let ways = if n % 2 == 0 { ["tcp", "unix"] } else { ["unix", "tcp"] };
        sandbox.run(client(ways[0], "fill", n)).success();
        sandbox.run(client(ways[1], "compare", n)).success();
        checkpoint(&sandbox, &job);
        job.kill_all();
        job.restart(*mode, &[]);
        job.program();
        for way in ways {
            sandbox.run(client(way, "compare", n)).success();
        }
    }
    // With somebody connected, a checkpoint is refused; the server and its client do not notice.
    let connected = "import socket, time\ns = socket.create_connection(('127.0.0.1', 7379))\ns.sendall(b'PING\\r\\n')\nprint(s.recv(9), flush=True)\ntime.sleep(1000)";
    let other = sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", connected]));
    other.wait_for_output("PONG", SOON);
    let refused = job.try_checkpoint().expect_code(125).stderr_text();
    assert!(refused.contains("(python3) has, outside the program"), "{refused}");
    other.kill_group(nix::sys::signal::Signal::SIGKILL);
    other.wait(SOON);
    checkpoint(&sandbox, &job);
    sandbox.run(client("tcp", "compare", 3)).success();
    job.kill_all();
}

/// Writes a line at each tick of a timer, to a file too; says what was posted to it, turned round and hashed.
const HTTP: &str = r"
const http = require('http'), fs = require('fs'), crypto = require('crypto');
const file = fs.openSync('ticks', 'w'), memory = [];
http.createServer((request, response) => {
  let body = '';
  request.on('data', some => body += some);
  request.on('end', () => response.end(
    crypto.createHash('sha256').update([...body].reverse().join('')).digest('hex'), 'utf8'));
}).listen(7380, '127.0.0.1', () => {
  let tick = 0, sum = 'begin';
  const steps = 400, hold = process.env.VICTIM_HOLD;
  const timer = setInterval(() => {
    if (tick === steps - 1 && hold && !fs.existsSync(hold)) return;
    tick += 1;
    memory.push({tick, text: String(tick).repeat(200)});
    sum = crypto.createHash('sha256').update(sum + memory[tick * 7919 % memory.length].text).digest('hex');
    fs.writeSync(file, `${tick} ${sum}\n`);
    fs.writeSync(1, `${tick} ${sum}\n`);
    if (tick === steps) { clearInterval(timer); process.exit(0); }
  }, 5);
});
";

const POST: &str = "
import hashlib, sys, urllib.request
word = sys.argv[1] * 5000
got = urllib.request.urlopen('http://127.0.0.1:7380/', word.encode()).read().decode()
assert got == hashlib.sha256(word[::-1].encode()).hexdigest(), got
";

#[test]
fn node() {
    if is_missing("node", NODE) {
        return;
    }
    let sandbox = Sandbox::new("node");
    let program = Cmd::new(NODE).args(["-e", HTTP]);
    let expected = Expected::of(&sandbox, &program, Some("ticks"));
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n3 ", SOON);
    let post = |word: &str| {
        sandbox.run(Cmd::new("/usr/bin/python3").args(["-c", POST, word])).success();
    };
    post("before");
    for mode in [MODES, MODES].concat() {
        checkpoint(&sandbox, &job);
        job.kill_all();
        job.restart(mode, &[]);
        job.program();
        post("after");
        post("once more");
    }
    let_go(&sandbox);
    job.wait(SOON * 2).success();
    assert_same("node: standard output", &expected.stdout, &job.stdout());
    let written = std::fs::read(sandbox.dir().join("ticks")).unwrap();
    assert_same("node: its file", &expected.file, &written);
}

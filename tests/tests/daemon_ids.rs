//! Process ids of a user's choice, which the daemon's core has the kernel give: nobody else loses any by it.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::Cmd;
use ckpt_tests::scenario::{Tool, beside_a_job, daemon_client};

const SOON: Duration = Duration::from_secs(30);

fn python(tool: &Tool, lines: &str) -> Cmd {
    daemon_client(tool.user.as_ref().unwrap(), lines)
}

/// Who asks for process ids gets none that forking would not give, one in a millisecond, and others fork on where they were.
#[test]
fn ids_that_are_asked_for_are_nobody_else_s() {
    beside_a_job("attack_ids", &[], |sandbox, _daemon, tool| {
        let lines = "
def number(id, reserved=0):
    return message(NEXT_ID, struct.pack('iI', id, reserved))
def begun():
    client = connect()
    send(client, hello(IDS))
    assert answer(client)[:2] == (DONE, b'\\0' * 8)
    return client
def ask(client, id):
    send(client, number(id))
    kind, body, _ = answer(client)
    assert kind == DONE, kind
    return struct.unpack('I', body[:4])[0]
def last():
    return int(open('/proc/sys/kernel/ns_last_pid').read())
def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, last()
client = begun()
for id in (1, 2, 299, -1, -2**31, 2**31 - 1):
    assert ask(client, id) == 22, id
before = last()
# Who does not use it has had it for a moment.
assert ask(client, 20000) == 0
wait_for(lambda: last() < 10000)
begun().close()
# Who does has that very id, but where somebody else was quicker, and others go on where they were.
def forked(id):
    assert ask(client, id) == 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    send(client, number(0))
    os.waitpid(child, 0)
    return child == id
assert sum(forked(id) for id in range(21000, 21100)) > 50
wait_for(lambda: before <= last() < 10000)
# One that is gone in the midst of it changes nothing, either.
for _ in range(20):
    other = begun()
    assert ask(other, 25000) == 0
    other.close()
wait_for(lambda: last() < 10000)
# However many a user has, each waits for the others.
clients = [begun() for _ in range(8)]
began = time.monotonic()
for _ in range(25):
    for one in clients:
        send(one, number(22000))
    for one in clients:
        assert answer(one)[0] == DONE
        send(one, number(0))
assert time.monotonic() - began >= (25 * 8 - 1) * 0.001
for one in clients:
    one.close()
# Anything else ends it.
for wrong in (number(5000, 1), number(0, 7), hello(IDS), message(FEATURES, b'\\0' * 8), os.urandom(20)):
    client = begun()
    send(client, wrong)
    kind, body, _ = answer(client)
    assert (kind, body[:1]) == (REFUSED, b'\\1'), (kind, body)
    assert answer(client)[0] is None
wait_for(lambda: last() < 10000)
";
        sandbox.run(python(tool, lines)).success();
    });
}

/// Where a fork has the kernel go on elsewhere at the very moment that the core has it go on where it was, it does that again.
#[test]
fn ids_go_on_where_they_were_while_others_fork() {
    beside_a_job("attack_forks", &[], |sandbox, _daemon, tool| {
        let lines = "
client = connect()
send(client, hello(IDS))
assert answer(client)[0] == DONE
for _ in range(300):
    send(client, message(NEXT_ID, struct.pack('iI', 30000, 0)))
    assert answer(client)[0] == DONE
    send(client, message(NEXT_ID, struct.pack('iI', 0, 0)))
";
        let forks = "
import os
for _ in range(4000):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
";
        let forking: Vec<_> =
            (0..2).map(|_| sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", forks]))).collect();
        sandbox.run(python(tool, lines)).success();
        forking.into_iter().for_each(|one| drop(one.wait(SOON).success()));
        let last = sandbox.run("cat /proc/sys/kernel/ns_last_pid").success().stdout_text();
        let last: i32 = last.trim().parse().unwrap();
        assert!(last < 20_000, "{last}");
    });
}

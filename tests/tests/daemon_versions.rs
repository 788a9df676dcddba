//! A daemon that is not of the build of whoever asks it, as after an upgrade of the one or the other.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::Tool;
use ckpt_tests::{Cmd, Sandbox};

const SOON: Duration = Duration::from_secs(30);

/// A daemon of another build, as far as a word: it says so, and wants no job. ckpt-user/src/daemon/wire.rs.
const OTHER: &str = "
import os, socket, struct, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
server.listen()
print('listens', flush=True)
for _ in range(2):
    client, _ = server.accept()
    wants, build = struct.unpack('II', client.recv(100)[12:])
    assert wants == 1, wants
    body = struct.pack('IIiII', 0, 32, os.getpid(), 0, build ^ 1)
    client.send(b'CKD1' + struct.pack('HHI', 1, 2, len(body)) + body)
    assert client.recv(100) == b'', 'something more was said to it'
";

/// Its workers may not know what they would be told: jobs do without, and say so.
#[test]
fn a_daemon_of_another_build_is_done_without() {
    let sandbox = Sandbox::new("daemon_versions");
    let tool = Tool::of_user(&sandbox);
    let place = sandbox.dir().join("d.sock");
    let other = sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", OTHER]).arg(&place));
    other.wait_for_output("listens", SOON);
    let place = place.to_str().unwrap();
    let ask = |verb: &[&str]| {
        let asks = Cmd::new(&tool.binary).args(verb).env("CKPTBPF_SOCKET", place);
        sandbox.run(tool.user.as_ref().unwrap().runs(&asks))
    };
    let said = ask(&["launch", "-d", "images", "--", "/bin/sh", "-c", "exit 3"]).expect_code(3).stderr_text();
    assert!(said.contains("is done without: it is of another version than this ckptbpf"), "{said}");
    let said = ask(&["daemon", "--check", "--socket", place]).expect_code(1).stdout_text();
    assert!(said.contains("does not serve this user: it is of another version"), "{said}");
    other.wait(SOON).success();
}

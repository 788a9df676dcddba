//! A client of a daemon's that may say whatever it likes.

use crate::sandbox::Cmd;
use crate::user::User;

/// What a client of the daemon's can say, in the words of ckpt-user/src/daemon/wire.rs.
const CLIENT: &str = r#"
import array, os, socket, struct, sys, time
PLACE = "/run/ckptbpf/daemon.sock"
HELLO, WELCOME, REFUSED, DEVICE, FEATURES, DONE, NEXT_ID = 1, 2, 3, 4, 5, 6, 10
QUERY, WORKER, FAULTS, PROGRAMS, IDS = 1, 2, 3, 4, 8
def connect():
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(PLACE)
    client.settimeout(20)
    return client
def message(kind, body, version=1, length=None, magic=b"CKD1"):
    return magic + struct.pack("HHI", version, kind, len(body) if length is None else length) + body
def hello(wants):
    return message(HELLO, struct.pack("II", wants, BUILD))
def send(client, data, fds=()):
    with_fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    client.sendmsg([data], with_fds)
def answer(client):
    try:
        data, fds, _, _ = socket.recv_fds(client, 65536, 8)
    except ConnectionResetError:
        return None, b"", []
    if not data:
        return None, b"", []
    return struct.unpack("H", data[6:8])[0], data[12:], fds
def asked(data, fds=()):
    client = connect()
    try:
        send(client, data, fds)
    except BrokenPipeError:
        pass
    except PermissionError:
        # Linux 6.16: the kernel takes no descriptors for it.
        assert fds
        return REFUSED, struct.pack("II", 1, 0), []
    return answer(client)
def asks_for_worker():
    client = connect()
    try:
        send(client, hello(WORKER), [os.pidfd_open(os.getpid())])
    except PermissionError:
        send(client, hello(WORKER))
    return client
def refusal(data, fds=()):
    kind, body, fds = asked(data, fds)
    return struct.unpack("I", body[:4])[0] if kind == REFUSED else (kind, len(fds))
BUILD = struct.unpack("I", asked(message(HELLO, struct.pack("II", QUERY, 0)))[1][16:])[0]
"#;

/// Lines of Python, run by this user, that begin with such functions.
pub fn daemon_client(user: &User, lines: &str) -> Cmd {
    user.runs(&Cmd::new("/usr/bin/python3").args(["-c", &format!("{CLIENT}{lines}")]))
}

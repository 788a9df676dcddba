//! Files in a directory that is closed to root, and open to the program's user: as on NFS with root_squash.
//!
//! A mount that knows one user and one group (an idmapped one, mount_setattr(2)) gives root no rights over what belongs to anybody
//! else: nobody has CAP_DAC_OVERRIDE there.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{PermissionsExt, chown};

use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{kill_all, steps};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Sandbox, User, ckptbpf};

/// Mounts `disk` at `mounted`, for the user and the group of the given id alone.
const MOUNT: &str = "
import ctypes, os, signal, struct, sys
libc, number = ctypes.CDLL(None, use_errno=True), ctypes.c_long
def call(which, *args):
    got = libc.syscall(number(which), *(number(a) if isinstance(a, int) else a for a in args))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got
AT_FDCWD, OPEN_TREE_CLONE, AT_EMPTY_PATH, MOUNT_ATTR_IDMAP = -100, 1, 0x1000, 0x100000
ready, tell = os.pipe()
child = os.fork()
if child == 0:
    call(272, 0x10000000)   # unshare(CLONE_NEWUSER)
    os.write(tell, b'x')
    signal.pause()
os.close(tell)
try:
    if not os.read(ready, 1):
        sys.exit(1)
    for kind in 'uid', 'gid':
        with open(f'/proc/{child}/{kind}_map', 'w') as file:
            file.write(f'{sys.argv[1]} {sys.argv[1]} 1')
    namespace = os.open(f'/proc/{child}/ns/user', os.O_RDONLY)
    tree = call(428, AT_FDCWD, b'disk', OPEN_TREE_CLONE)
    attributes = struct.pack('QQQQ', MOUNT_ATTR_IDMAP, 0, 0, namespace)
    call(442, tree, b'', AT_EMPTY_PATH, attributes, len(attributes))
    call(429, tree, b'', AT_FDCWD, b'mounted', 4)   # move_mount(MOVE_MOUNT_F_EMPTY_PATH)
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
";

/// Adds to a file that it also reads.
const PROGRAM: &str = "
import os, select, sys
rows = open(sys.argv[1] + '/rows', 'w+b', 0)
for i in range(10 ** 8):
    rows.seek(0)
    assert len(rows.read()) == 9 * i
    rows.write(b'%9d' % i)
    print(i, flush=True)
    select.select([], [], [], 0.005)
";

#[test]
fn files_of_a_directory_that_is_closed_to_root_are_saved_by_their_names() {
    const NAME: &str = "squashed";
    /// Nobody's in that mount.
    const OTHER: u32 = 5555;
    let sandbox = Sandbox::new(NAME);
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    let user = User::of(&sandbox);
    let id = ckpt_tests::user::UID;
    let closed = sandbox.dir().join("disk/closed");
    std::fs::create_dir_all(&closed).unwrap();
    std::fs::create_dir(sandbox.dir().join("mounted")).unwrap();
    // Nobody makes a file there either.
    std::fs::write(closed.join("rows"), "").unwrap();
    chown(closed.join("rows"), Some(id), Some(id)).unwrap();
    chown(&closed, Some(OTHER), Some(id)).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o770)).unwrap();
    let mounted = sandbox.run(Cmd::new("/usr/bin/python3").args(["-c", MOUNT]).arg(id.to_string()));
    if mounted.code() != 0 {
        return skip(NAME, "there are no idmapped mounts here");
    }
    let folder = sandbox.dir().join("mounted/closed");
    let seen_by_root = sandbox.run(Cmd::new("ls").arg(&folder));
    assert_ne!(seen_by_root.code(), 0, "root is not kept out: {}", seen_by_root.stdout_text());

    let tool = Cmd::new(user.copy_of(&ckptbpf()));
    let launch = tool.clone().args(["launch", "-d", "images", "--", "/usr/bin/python3", "-c", PROGRAM]);
    let checkpoint = user.runs_by_sudo(&tool.clone().args(["checkpoint", "images"]));
    let restart =
        |option: &[&str]| user.runs_by_sudo(&tool.clone().arg("restart").args(option).arg("images"));
    for run in [user.runs_by_sudo(&launch.arg(&folder)), restart(&[]), restart(&["--lazy"])] {
        let running = sandbox.spawn(run);
        steps(&sandbox, &running);
        sandbox.run(checkpoint.clone()).success();
        steps(&sandbox, &running);
        kill_all(&sandbox, running);
    }
    // Closed to its user as well, who has the file open all the same.
    let running = sandbox.spawn(restart(&[]));
    steps(&sandbox, &running);
    chown(&closed, None, Some(OTHER)).unwrap();
    let said = sandbox.run(checkpoint).expect_code(125).stderr_text();
    assert!(
        said.contains("/closed/rows") && said.contains("is not to be known (Permission denied"),
        "{said}"
    );
    steps(&sandbox, &running);
    kill_all(&sandbox, running);
    sandbox.run("umount mounted").success();
}

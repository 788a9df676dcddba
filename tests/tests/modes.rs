//! Files that are open for more than their modes allow: natively that is asked for once, when they are opened.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::chown;

use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{kill_all, steps};
use ckpt_tests::{Cmd, Sandbox, User, ckptbpf};

/// As git(1) does, which makes its objects read-only and then writes them.
const PROGRAM: &str = "
import mmap, os, select
def made(name, flags, mode):
    fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, mode)
    return (fd, mode)
files = [made('ro', os.O_RDWR, 0o444), made('wo', os.O_WRONLY | os.O_APPEND, 0o200), made('none', os.O_RDWR, 0),
    made('gone', os.O_RDWR, 0o444), made('page', os.O_RDWR, 0o400)]
os.unlink('gone')
page = files.pop()[0]
os.ftruncate(page, 4096)
memory = (mmap.mmap(page, 4096), os.close(page))[0]
for i in range(10 ** 8):
    assert bytes(memory[:9]) == (b'%9d' % (i - 1) if i else bytes(9))
    memory[:9] = b'%9d' % i
    for fd, mode in files:
        found = os.fstat(fd)
        assert (found.st_size, found.st_mode & 0o7777) == (9 * i, mode), (i, mode, found)
        os.write(fd, b'%9d' % i)
    print(i, flush=True)
    select.select([], [], [], 0.005)
";

#[test]
fn files_that_are_open_for_more_than_their_modes_allow() {
    let sandbox = Sandbox::new("modes");
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    let user = User::of(&sandbox);
    let tool = Cmd::new(user.copy_of(&ckptbpf()));
    let launch = tool.clone().args(["launch", "-d", "images", "--", "/usr/bin/python3", "-c", PROGRAM]);
    let checkpoint = user.runs_by_sudo(&tool.clone().args(["checkpoint", "images"]));
    let restart =
        |option: &[&str]| user.runs_by_sudo(&tool.clone().arg("restart").args(option).arg("images"));
    for run in [user.runs_by_sudo(&launch), restart(&[]), restart(&["--lazy"]), restart(&[])] {
        let running = sandbox.spawn(run);
        steps(&sandbox, &running);
        sandbox.run(checkpoint.clone()).success();
        steps(&sandbox, &running);
        kill_all(&sandbox, running);
    }
    // Whose is not the user's has the mode that others gave it.
    let file = user.home().join("ro");
    chown(&file, Some(0), Some(0)).unwrap();
    let before = std::fs::read(&file).unwrap();
    for option in [&[][..], &["--lazy"], &["--files", "keep"]] {
        let refused = sandbox.run(restart(option)).expect_code(125).stderr_text();
        assert!(refused.contains("/ro: Permission denied"), "{refused}");
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }
}

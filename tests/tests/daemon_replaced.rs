//! A daemon in the place of one that is gone, as after an upgrade: jobs that run have of it what they had of the other.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool, held, let_go, python_loop};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same};

const SOON: Duration = Duration::from_secs(30);

/// Shared memory without a name, of which the last page is not mapped.
const MEMORY: &str = "\
import ctypes, zlib
SIZE = 65536
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_long] * 6
libc.munmap.argtypes = [ctypes.c_long] * 2
at = libc.mmap(0, SIZE + 4096, 3, 0x21, -1, 0)
assert at != -1 and libc.munmap(at + SIZE, 4096) == 0
memory = (ctypes.c_char * SIZE).from_address(at)
";

/// What a user cannot have saved without a daemon, which opens it.
fn program() -> Cmd {
    let step = "\
memory[i * 4099 % SIZE] = bytes([i % 256])
print(i, zlib.crc32(memory[:]), flush=True)";
    let script = format!("{MEMORY}{}", python_loop(600, 0.004, step));
    Cmd::new("/usr/bin/python3").args(["-c", &script])
}

/// System calls that the last freeze has injected.
fn injected(sandbox: &Sandbox, job: &Job) -> u64 {
    let text = std::fs::read_to_string(sandbox.see(job.dir()).join("events.jsonl")).unwrap();
    let mut events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let last = events.rfind(|event| event["phase"] == "freeze");
    last.unwrap()["injected"].as_u64().unwrap()
}

/// A checkpoint that needs a daemon is refused where there is none, and taken when there is one again: in the job that was launched
/// with another one, and in one that it has restarted into namespaces.
#[test]
fn jobs_ask_the_daemon_that_is_there() {
    let sandbox = Sandbox::with_limit("daemon_replaced", Duration::from_secs(170));
    let expected = Expected::of(&sandbox, &program(), None);
    let mut daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let user = tool.user.clone().unwrap();
    let mut job = Job::launch_by(&sandbox, tool, user.home().join("images"), &[], &held(&sandbox, program()));
    for is_restarted in [false, true] {
        if is_restarted {
            job.checkpoint_and_end();
            job.restart(Mode::Eager, &[]);
        } else {
            job.running().wait_for_output("\n50 ", SOON);
        }
        job.checkpoint();
        assert_eq!(injected(&sandbox, &job), 0);
        daemon.kill();
        let refused = job.try_checkpoint().expect_code(125).stderr_text();
        assert!(
            refused.contains("there is more of it than any process of the program has mapped"),
            "{refused}"
        );
        daemon = Daemon::begin(&sandbox, &[]);
        // The first one may still be without it.
        sandbox.wait_for("a checkpoint by the new one", SOON, || job.try_checkpoint().code() == 0);
        job.checkpoint();
        assert_eq!(injected(&sandbox, &job), 0, "{}", job.running().stderr());
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
    daemon.end();
}

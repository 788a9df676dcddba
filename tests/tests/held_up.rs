//! What users might do to hold up root, who looks after everybody's jobs.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use ckpt_tests::scenario::{ckptbpf, verb};
use ckpt_tests::user::{UID, User};
use ckpt_tests::{Cmd, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Entries of jobs, with sockets at which nobody is answered: at one there is no room for anybody, at the other whoever comes is told
/// nothing. The third is of a job that is over.
const ENTRIES: &str = r#"
import json, os, signal, socket
place = f'/run/ckptbpf/{os.getuid()}'
def entry(pid, start):
    one = {'pid': pid, 'start_time': start}
    text = {'job': 'j', 'dir': os.getcwd(), **one, 'supervisor': one, 'argv': ['a'], 'uid': os.getuid(), 'socket': ''}
    with open(f'{place}/{pid}-{start}.json', 'w') as file:
        json.dump(text, file)
    return f'{place}/{pid}-{start}.sock'
def listening(pid):
    with open(f'/proc/{pid}/stat') as file:
        start = int(file.read().rsplit(')', 1)[1].split()[19])
    server = socket.socket(socket.AF_UNIX)
    server.bind(entry(pid, start))
    server.listen(0)
    return server
child = os.fork()
if child == 0:
    signal.pause()
full = listening(child)
waits = socket.socket(socket.AF_UNIX)
waits.connect(full.getsockname())
entry(4000000, 1)
answers = listening(os.getpid())
print('ready', flush=True)
while True:
    answers.accept()[0].close()
    print('asked', flush=True)
"#;

#[test]
fn root_waits_for_nobody_s_supervisor_and_an_epilog_asks_none() {
    let sandbox = Sandbox::new("held_up");
    let user = User::of(&sandbox);
    let place = format!("/run/ckptbpf/{UID}");
    let make = format!("install -d -m 755 /run/ckptbpf && install -d -m 700 -o {UID} -g {UID} {place}");
    sandbox.run(make.as_str()).success();
    let theirs = sandbox.spawn(user.runs(&Cmd::new("/usr/bin/python3").args(["-c", ENTRIES])));
    theirs.wait_for_output("ready", SOON);
    let entries = || {
        let names = std::fs::read_dir(sandbox.see(Path::new(&place))).unwrap();
        names
            .filter(|name| name.as_ref().unwrap().path().extension().is_some_and(|end| end == "json"))
            .count()
    };
    assert_eq!(entries(), 3);
    let epilog = Path::new(env!("CARGO_MANIFEST_DIR")).join("../slurm/epilog");
    let epilog = Cmd::new("/bin/sh").arg(epilog).env("SLURM_JOB_ID", "7").env("SLURMD_NODENAME", "n1");
    let path = ckptbpf();
    sandbox.run(epilog.env("CKPTBPF_PATH", path.parent().unwrap().to_str().unwrap())).success();
    assert_eq!(entries(), 2, "what is over is cleared");
    assert!(!String::from_utf8_lossy(&theirs.stdout()).contains("asked"), "an epilog asks nobody");
    sandbox.run(verb("status", ["--clear"])).success();
    assert!(!String::from_utf8_lossy(&theirs.stdout()).contains("asked"));
    // Who wants to know asks, and is not kept for ever.
    let said = sandbox.run(verb("status", [""; 0])).success().stderr_text();
    assert!(said.contains("no ckptbpf answers there"), "{said}");
    theirs.wait_for_output("asked", SOON);
    theirs.kill_group(Signal::SIGKILL);
    theirs.wait(SOON).expect_code(137);
    sandbox.wait_until_empty(SOON);
    sandbox.run(verb("status", ["--clear"])).success();
    assert_eq!(entries(), 0);
    sandbox.run("rm -r /run/ckptbpf").success();
}

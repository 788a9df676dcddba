//! Files that somebody outside of the program writes to while it is restarted.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{ckptbpf, kill_all, steps, verb};
use ckpt_tests::{Cmd, Job, Mode, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// Adds to `rows` and changes `page` through a mapping of it.
const PROGRAM: &str = "
import mmap, os, select
rows = open('rows', 'ab', 0)
page = os.open('page', os.O_RDWR)
page = (mmap.mmap(page, 4096), os.close(page))[0]
for i in range(10 ** 8):
    rows.write(b'%9d' % i)
    page[:9] = b'%9d' % i
    print(i, flush=True)
    select.select([], [], [], 0.005)
";

/// Has `page` mapped for writing, and no descriptor of it.
const MAPPER: &str = "
import mmap, os, select
page = os.open('page', os.O_RDWR)
page = (mmap.mmap(page, 4096), os.close(page))[0]
page[100:104] = b'mine'
print('have', flush=True)
select.select([], [], [], 1000)
";

/// A job of [`PROGRAM`] that has a checkpoint, has written more, and was killed.
fn killed_job(sandbox: &Sandbox) -> Job<'_> {
    std::fs::write(sandbox.dir().join("page"), vec![7; 4096]).unwrap();
    let mut job = Job::launch(sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]));
    job.running().wait_for_output("\n9\n", SOON);
    job.checkpoint();
    steps(sandbox, job.running());
    job.kill_all();
    job
}

#[test]
fn a_file_that_somebody_else_writes_to_is_refused_at_restart_by_name() {
    let sandbox = Sandbox::new("others");
    let mut job = killed_job(&sandbox);
    let read = || ["rows", "page"].map(|name| std::fs::read(sandbox.dir().join(name)).unwrap());
    let cases = [
        (Cmd::sh("exec 7>> rows; echo a row of mine >&7; echo have; sleep 1000"), "/rows: process "),
        (Cmd::new("/usr/bin/python3").args(["-c", MAPPER]), "/page: process "),
    ];
    for (other, says) in cases {
        let other = sandbox.spawn(other);
        other.wait_for_output("have\n", SOON);
        let before = read();
        for mode in [&[][..], &["--lazy"], &["--files", "check"]] {
            let said = sandbox.run(verb("restart", mode).arg(job.dir())).expect_code(125).stderr_text();
            let named = said.contains(says) && said.contains("has it open for writing");
            assert!(named || (mode.len() > 1 && said.contains("has grown")), "{said}");
            assert!(read() == before, "a restart that failed has changed a file");
        }
        other.kill_group(Signal::SIGKILL);
        other.wait(SOON);
        sandbox.wait_for("nobody to have the file", SOON, || sandbox.ps().is_empty());
    }
    for mode in [Mode::Eager, Mode::Lazy] {
        job.restart(mode, &[]);
        steps(&sandbox, job.running());
        job.checkpoint();
        job.kill_all();
    }
}

#[test]
fn a_file_that_somebody_else_writes_to_is_kept_as_it_is_where_that_is_asked_for() {
    let sandbox = Sandbox::new("others_kept");
    let mut job = killed_job(&sandbox);
    let other = sandbox.spawn("exec 7>> rows; echo a row of mine >&7; echo have; sleep 1000");
    other.wait_for_output("have\n", SOON);
    job.restart(Mode::Eager, &["--files", "keep"]);
    steps(&sandbox, job.running());
    let said = job.running().stderr();
    assert!(said.contains("/rows: process ") && said.contains("has it open for writing"), "{said}");
    job.kill_all();
    let rows = std::fs::read(sandbox.dir().join("rows")).unwrap();
    assert!(rows.windows(13).any(|part| part == b"a row of mine"), "a row is lost");
}

/// A script that has a file open over the whole of a job, and its own standard output in one that the program also has.
#[test]
fn who_has_started_the_restart_is_nobody_else() {
    let sandbox = Sandbox::new("others_script");
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    let program = sandbox.dir().join("program.py");
    std::fs::write(&program, PROGRAM).unwrap();
    std::fs::write(sandbox.dir().join("page"), vec![7; 4096]).unwrap();
    let launch = format!("{} launch -d images -- /usr/bin/python3 program.py", ckptbpf().display());
    let restart = |option: &str| format!("{} restart {option} images", ckptbpf().display());
    let log = sandbox.dir().join("log");
    let lines = || std::fs::read(&log).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
    let more = || {
        let then = lines();
        sandbox.wait_for("the program to go on", SOON, || lines() > then + 3);
    };
    for run in [launch, restart(""), restart("--lazy")] {
        // It holds the log as long as it runs, and so does its child.
        let script = format!("exec 3>> rows >> log; sleep 1000 3>&- & {run}; exit 9");
        let running = sandbox.spawn(Cmd::sh(&script));
        sandbox.wait_for("the job", SOON, || {
            assert!(!running.has_ended(), "{}", running.stderr());
            sandbox.run(verb("checkpoint", ["images"])).code() == 0
        });
        more();
        kill_all(&sandbox, running);
    }
}

/// A log that several jobs add to, and a lock file that they have in common: nothing of either is lost.
#[test]
fn files_that_nothing_is_cut_off_are_shared_with_others() {
    const PROGRAM: &str = "
import fcntl, os, select
log, lock = open('log', 'ab', 0), os.open('lock', os.O_RDWR | os.O_CREAT)
log.write(b'one')
for i in range(10 ** 8):
    print(i, flush=True)
    select.select([], [], [], 0.005)
";
    let sandbox = Sandbox::new("others_share");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]));
    job.running().wait_for_output("\n9\n", SOON);
    job.checkpoint();
    job.kill_all();
    let another = || {
        let other = sandbox.spawn("exec 7>> log 8<> lock; echo have; sleep 1000");
        other.wait_for_output("have\n", SOON);
        other
    };
    for mode in [Mode::Eager, Mode::Lazy] {
        let _other = another();
        job.restart_at(1, mode, &[]);
        steps(&sandbox, job.running());
        job.kill_all();
    }
    // Once the other one has added to it, that would be cut off.
    let other = another();
    sandbox.run("printf mine >> log").success();
    let said = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
    assert!(said.contains("/log: process ") && said.contains("has it open for writing"), "{said}");
    other.kill_group(Signal::SIGKILL);
    assert_eq!(std::fs::read(sandbox.dir().join("log")).unwrap(), b"onemine");
}

//! A checkpoint that fails loses nothing: the program runs on, the last checkpoint stays good, and the next one that
//! succeeds holds everything since.

use super::{SOON, compare, restart_at, signal};
use ckpt_tests::scenario::verb;
use ckpt_tests::{Job, Mode, Sandbox, skip, victim_cmd};
use std::path::Path;

const ROWS: [&str; 6] = ["rewritten", "dropped", "file", "mremap", "punched", "new"];

/// Takes a checkpoint that has to fail for `reason`, and sees that it has left no trace.
fn assert_fails(sandbox: &Sandbox, job: &Job, reason: &str) {
    let failed = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125);
    let said = failed.stderr_text();
    assert!(said.contains(reason), "{said}");
    assert_eq!(job.checkpoints().len(), 1, "{:?}", job.checkpoints());
    assert!(!job.running().has_ended());
    sandbox.run(verb("verify", [job.dir()])).success();
    let listed = sandbox.run(&*format!("ls -A {}", job.dir().display())).success().stdout_text();
    assert!(!listed.contains(".tmp") && !listed.contains("000002"), "{listed}");
}

fn launch<'b>(sandbox: &'b Sandbox, images: &Path) -> Job<'b> {
    let dir = sandbox.dir();
    let program = victim_cmd("dirty").arg(dir).arg("1").args(ROWS);
    let job = Job::launch_in(sandbox, images.to_owned(), &[], &program);
    job.running().wait_for_output("ready\n", SOON);
    super::wait_until_known(sandbox, &job);
    job
}

/// `spoil` makes checkpoints fail for `reason`, `repair` ends that; nothing is written in between.
fn loses_nothing(sandbox: &Sandbox, job: &mut Job, reason: &str, spoil: &[String], repair: &str) {
    let program = job.program();
    job.checkpoint();
    signal(sandbox, program);
    job.running().wait_for_output("done 1\n", SOON);
    for line in spoil {
        sandbox.run(&**line).success();
        assert_fails(sandbox, job, reason);
    }
    sandbox.run(repair).success();
    let good = job.checkpoint();
    assert_eq!((good.kind.as_str(), good.parent), ("delta", Some(1)), "{good:?}");
    job.kill_all();
    restart_at(sandbox, job, good.id, Mode::Eager, &[]);
    compare(sandbox, job, program, 1);
    job.kill_all();
    // And the first one is as good as it was: the step is yet to be taken.
    restart_at(sandbox, job, 1, Mode::Lazy, &[]);
    signal(sandbox, program);
    job.running().wait_for_output("done 1\n", SOON);
    compare(sandbox, job, program, 1);
    job.kill_all();
}

#[test]
fn full_disk() {
    let sandbox = Sandbox::new("dirty-disk");
    let small = sandbox.dir().join("small");
    let at = small.display();
    sandbox.run(&*format!("mkdir {at} && mount -t tmpfs -o size=40m none {at}")).success();
    let mut job = launch(&sandbox, &small.join("images"));
    // Full while the program runs, in the middle of its pages, and at the very end: 9 MiB are to be written.
    let leaving = |kib: u64| {
        format!(
            "rm -f {at}/filler; head -c $(($(df --output=avail -B1 {at} | tail -1) - {kib} * 1024)) /dev/zero > {at}/filler"
        )
    };
    let spoil = [leaving(0), leaving(3000), leaving(8400), leaving(64)];
    loses_nothing(&sandbox, &mut job, "No space left", &spoil, &format!("rm {at}/filler"));
    drop(job);
    sandbox.run(&*format!("umount {at}")).success();
}

#[test]
fn read_only_directory() {
    let sandbox = Sandbox::new("dirty-immutable");
    let images = sandbox.dir().join("images");
    let mut job = launch(&sandbox, &images);
    let at = images.display();
    if sandbox.run(&*format!("chattr +i {at} && chattr -i {at}")).code() != 0 {
        skip::skip("read_only_directory", "chattr +i does not work here");
        job.kill_all();
        return;
    }
    let repair = format!("chattr -i {at}");
    loses_nothing(&sandbox, &mut job, "", &[format!("chattr +i {at}")], &repair);
}

#[test]
fn a_refused_checkpoint() {
    let sandbox = Sandbox::new("dirty-refused");
    let images = sandbox.dir().join("images");
    let mut job = launch(&sandbox, &images);
    let program = job.program();
    // Held by somebody else's tracer, it cannot be frozen; the rounds beside it have been made by then.
    let hold = format!(
        "mkfifo {0}/hold; (exec gdb --batch --nx -p {program} -ex 'shell cat {0}/hold') >/dev/null 2>&1 & \
         until grep -q '^TracerPid:.*[1-9]' /proc/{program}/status; do :; done",
        sandbox.dir().display()
    );
    let release = format!(
        "echo > {}/hold; while grep -q '^TracerPid:.*[1-9]' /proc/{program}/status; do :; done",
        sandbox.dir().display()
    );
    loses_nothing(&sandbox, &mut job, "traced", &[hold], &release);
}

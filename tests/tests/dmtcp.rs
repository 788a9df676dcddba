//! Job scripts that were written for DMTCP, word for word, ended as a batch system ends them, and restarted by the script that comes
//! after: what the program has written is what an undisturbed run writes.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Scripts, Tool, let_go};
use ckpt_tests::{Running, Sandbox, assert_same};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);
/// A minute of a job, and some more for a busy machine.
const A_MINUTE: Duration = Duration::from_secs(100);

const LAUNCH: &str = "rm *.dmtcp\nrm dmtcp_restart_script*.sh\ndmtcp_launch -i 10 ./count\n";
const RESTART: &str = "dmtcp_restart -i 10 ckpt_*.dmtcp\n";

const LAUNCH_TO_ITS_CHECKPOINT: &str = "rm *.dmtcp\nrm dmtcp_restart_script*.sh\n\
    dmtcp_coordinator --exit-after-ckpt --daemon\ndmtcp_launch -i 45 ./count\n";
const RESTART_TO_ITS_CHECKPOINT: &str =
    "dmtcp_coordinator --exit-after-ckpt --daemon\ndmtcp_restart -i 45 ckpt_*.dmtcp\n";

/// TERM, and KILL of what is left: the end of a job whose time is over.
fn time_is_over(scripts: &Scripts<'_>, running: Running<'_>) {
    running.kill_group(Signal::SIGTERM);
    running.wait(SOON).expect_code(143);
    scripts.kill_everything();
}

#[test]
fn a_script_that_launches_and_one_that_restarts() {
    let sandbox = Sandbox::with_limit("dmtcp_scripts", Duration::from_secs(170));
    let scripts = Scripts::of(&sandbox, Tool::default(), 12_000, 2000);
    let running = scripts.start(LAUNCH);
    scripts.wait_for_checkpoint(&running, 0, A_MINUTE);
    time_is_over(&scripts, running);
    scripts.agrees();
    let before = scripts.newest();
    let running = scripts.start(RESTART);
    scripts.wait_for_checkpoint(&running, before, A_MINUTE);
    scripts.kill_everything();
    running.wait(SOON).expect_code(137);
    scripts.agrees();
    let_go(&sandbox);
    let last = scripts.start(RESTART).wait(A_MINUTE).success();
    scripts.is_whole(&last.stdout);
    assert_eq!((scripts.pointers().len(), scripts.images().len()), (1, 1));
}

/// The checkpoint of the coordinator's is the end: what both runs and the rest printed needs no cut, nor does the file.
#[test]
fn a_coordinator_that_ends_jobs_with_their_checkpoint() {
    let sandbox = Sandbox::with_limit("dmtcp_exit_after", Duration::from_secs(170));
    let scripts = Scripts::of(&sandbox, Tool::default(), 7000, 8000);
    let running = scripts.start(LAUNCH_TO_ITS_CHECKPOINT);
    let mut printed = running.wait(A_MINUTE).success().stdout;
    assert!(!printed.is_empty() && printed.len() < scripts.expected.stdout.len(), "{}", printed.len());
    assert_eq!(scripts.newest(), 1);
    scripts.agrees();
    let running = scripts.start(RESTART_TO_ITS_CHECKPOINT);
    sandbox.wait_for("the job to be known", SOON, || scripts.run("dmtcp_command -bc").code() == 0);
    printed.extend(running.wait(SOON).success().stdout);
    assert_same("what was printed", &scripts.expected.stdout[..printed.len()], &printed);
    scripts.agrees();
    // Its coordinator has done what it was there for.
    let_go(&sandbox);
    printed.extend(scripts.start("dmtcp_restart -i 45 ckpt_*.dmtcp\n").wait(A_MINUTE).success().stdout);
    assert_same("the runs' output", &scripts.expected.stdout, &printed);
    scripts.is_whole(&printed);
}

/// As a cluster has it: users without root, and a daemon that takes their checkpoints.
#[test]
fn scripts_of_users_with_a_daemon() {
    let sandbox = Sandbox::new("dmtcp_daemon");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let scripts = Scripts::of(&sandbox, tool, 3000, 2000);
    let running = scripts.start("rm *.dmtcp\ndmtcp_launch -i 1 ./count\n");
    scripts.wait_for_checkpoint(&running, 0, SOON);
    assert!(scripts.run("dmtcp_command -s").success().stdout_text().contains("RUNNING=yes"));
    scripts.no_port_is_open();
    scripts.kill_everything();
    running.wait(SOON).expect_code(137);
    let before = scripts.newest();
    let running = scripts.start("dmtcp_restart -i 1 ckpt_*.dmtcp\n");
    scripts.wait_for_checkpoint(&running, before, SOON);
    scripts.run("dmtcp_command -kc").success();
    running.wait(SOON).success();
    scripts.agrees();
    // Ended without a checkpoint, it goes on from the last.
    let running = scripts.start("dmtcp_restart ckpt_*.dmtcp\n");
    let is_running = || scripts.run("dmtcp_command -s").stdout_text().contains("RUNNING=yes");
    sandbox.wait_for("the job to be known", SOON, is_running);
    scripts.run("dmtcp_command --kill").success();
    running.wait(SOON).success();
    let_go(&sandbox);
    let last = scripts.start("dmtcp_restart -i 0 ckpt_*.dmtcp\n").wait(SOON).success();
    scripts.is_whole(&last.stdout);
    assert!(daemon.log().contains("worker"), "{}", daemon.log());
    daemon.end();
}

/// For want of a namespace for the program, and by the worker.
#[test]
fn restarts_by_a_daemon_that_are_refused_are_failures_too() {
    let sandbox = Sandbox::new("dmtcp_daemon_refused");
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let scripts = Scripts::of(&sandbox, tool, 2000, 2000);
    scripts.start("dmtcp_launch -i 1 --exit-after-ckpt ./count").wait(SOON).success();
    let refused = |line: &str, words: &str| {
        let said = scripts.run(line).expect_code(99).stderr_text();
        assert_eq!(said.matches(words).count(), 1, "{line}: {said}");
    };
    // Who may have no more processes than these has no init of a namespace (EAGAIN of clone(2)).
    let alone = "exec prlimit --nproc=1 dmtcp_restart -i 0 ckpt_*.dmtcp";
    refused(alone, "a user namespace of its own, in which a user may choose, cannot be had");
    scripts.run("mv numbers aside").success();
    refused("dmtcp_restart -i 0 ckpt_*.dmtcp", "/numbers");
    scripts.run("mv aside numbers").success();
    let_go(&sandbox);
    let last = scripts.start("dmtcp_restart -i 0 ckpt_*.dmtcp").wait(SOON).success();
    scripts.is_whole(&last.stdout);
    daemon.end();
}

/// Scripts restart by the script that DMTCP leaves, too: from where it is, from a copy, with options.
#[test]
fn the_restart_script() {
    let sandbox = Sandbox::new("dmtcp_restart_script");
    let scripts = Scripts::of(&sandbox, Tool::default(), 2000, 2000);
    scripts.start("dmtcp_launch -i 1 --exit-after-ckpt ./count").wait(SOON).success();
    let copy = sandbox.dir().join("copy.sh");
    std::fs::copy(scripts.folder().join("dmtcp_restart_script.sh"), &copy).unwrap();
    scripts.start(&format!("sh {} --interval 1 --exit-after-ckpt", copy.display())).wait(SOON).success();
    assert_eq!(scripts.newest(), 2);
    scripts.agrees();
    let refused = scripts.run("./dmtcp_restart_script.sh --nonsense").expect_code(99).stderr_text();
    assert!(refused.contains("--nonsense: there is no such option"), "{refused}");
    let_go(&sandbox);
    let last = scripts.start("cd / && $OLDPWD/dmtcp_restart_script.sh -i 0").wait(SOON).success();
    scripts.is_whole(&last.stdout);
}

/// The folder of checkpoints is moved as a whole, is read-only, and has another one beside it.
#[test]
fn checkpoints_are_moved_and_read_from_where_nothing_can_be_written() {
    let sandbox = Sandbox::new("dmtcp_moved");
    let scripts = Scripts::of(&sandbox, Tool::default(), 2000, 2000);
    scripts.start("dmtcp_launch --ckptdir first -i 1 --exit-after-ckpt ./count").wait(SOON).success();
    scripts.run("mv first second").success();
    scripts.start("dmtcp_restart -i 1 --exit-after-ckpt second/ckpt_*.dmtcp").wait(SOON).success();
    let names = scripts.run("echo second/.ckpt_*/*.ckpt").success().stdout_text();
    assert_eq!(names.split(' ').count(), 2, "{names}");
    assert!(!scripts.folder().join("first").exists());
    scripts.run("mount --bind second second && mount -o remount,bind,ro second").success();
    let refused = scripts.run("dmtcp_restart second/ckpt_*.dmtcp").expect_code(99).stderr_text();
    assert!(refused.contains("cannot be written") && refused.contains("--ckptdir"), "{refused}");
    let again = "DMTCP_CHECKPOINT_DIR=third dmtcp_restart -i 1 --exit-after-ckpt second/ckpt_*.dmtcp";
    scripts.start(again).wait(SOON).success();
    let refused = scripts.run("dmtcp_restart --ckptdir third second/ckpt_*.dmtcp");
    let refused = refused.expect_code(99).stderr_text();
    assert!(refused.contains("already holds checkpoints") && refused.contains("has --ckptdir"), "{refused}");
    scripts.run("umount second").success();
    let_go(&sandbox);
    let last = scripts.start("dmtcp_restart -i 0 --restartdir third").wait(SOON).success();
    scripts.is_whole(&last.stdout);
}

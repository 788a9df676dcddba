//! Two nodes and one directory: there is one writer at a time, and nobody guesses who it is.
//!
//! A node is a pid, mount and uts namespace with a host name, a boot id and a /run of its own.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{stepper, verb};
use ckpt_tests::{Cmd, Generation, Running, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);

/// A command on a node, whose next process id is `next`. With `deaf`, locks of the other node do not reach it, as on a
/// network file system that does not pass them on.
fn on(sandbox: &Sandbox, node: &str, next: u32, deaf: bool, cmd: &Cmd) -> Cmd {
    const LINE: &str =
        "set -e; hostname $0; echo boot-of-$0 > $0.boot; mount --bind $0.boot /proc/sys/kernel/random/boot_id
        mount -t tmpfs none /run; echo $1 > /proc/sys/kernel/ns_last_pid
        if [ $2 = deaf ]; then touch $0.lock; mount --bind $0.lock images/lock; fi
        shift 2; set +e; \"$@\"; exit $?";
    let unshare = "unshare --mount --uts --pid --fork --kill-child --mount-proc".split(' ');
    Cmd::new("/usr/bin/env")
        .args(unshare)
        .args(["/bin/bash", "-c", LINE, node, &next.to_string(), if deaf { "deaf" } else { "hears" }])
        .program(cmd)
        .cwd(&sandbox.dir())
}

fn generations(sandbox: &Sandbox) -> Vec<Generation> {
    let listed = sandbox.run(verb("list", ["--json", "images"]));
    if listed.code() == 0 { serde_json::from_slice(&listed.stdout).unwrap() } else { Vec::new() }
}

fn newest(sandbox: &Sandbox) -> u64 {
    generations(sandbox).last().map_or(0, |one| one.id)
}

fn wait_for_checkpoints(sandbox: &Sandbox, by: &Running, more: u64) {
    let before = newest(sandbox);
    sandbox.wait_for("more checkpoints", SOON, || {
        assert!(!by.has_ended(), "{}", by.stderr());
        newest(sandbox) >= before + more
    });
}

/// The numbers of the checkpoints that a supervisor says it has taken.
fn told(running: &Running) -> Vec<u64> {
    let said = running.stderr();
    let number = |line: &str| line.split_once(": checkpoint ")?.1.split(' ').next()?.parse().ok();
    said.lines().filter(|line| line.contains(" stored, frozen ")).filter_map(number).collect()
}

#[test]
fn a_second_node_is_told_of_the_first_and_the_one_that_lost_commits_nothing_more() {
    let sandbox = Sandbox::new("two_nodes");
    let options = ["-v", "-i", "0.2"];
    let launch =
        verb("launch", ["-d", "images", "--keep", "1000"]).args(options).arg("--").program(&stepper(1000));
    let first = sandbox.spawn(on(&sandbox, "node-a", 200, false, &launch));
    first.wait_for_output("0 ", SOON);
    wait_for_checkpoints(&sandbox, &first, 2);

    // The first one's lock reaches the second node.
    let restart = |more: &[&str]| verb("restart", more).args(options).arg("images");
    for take_over in [&[][..], &["--take-over"]] {
        let refused = sandbox.run(on(&sandbox, "node-b", 20, false, &restart(take_over)));
        let said = refused.expect_code(125).stderr_text();
        assert!(said.contains("node-a"), "{said}");
    }
    // It does not: what is known is who wrote last, and not whether that one still runs.
    let refused = sandbox.run(on(&sandbox, "node-b", 20, true, &restart(&[]))).expect_code(125).stderr_text();
    assert!(refused.contains("node-a") && refused.contains("--take-over"), "{refused}");
    wait_for_checkpoints(&sandbox, &first, 1);

    // Here one kernel knows of both that they write to the file, which no second node does.
    let take_over = restart(&["--take-over", "--files", "keep"]);
    let second = sandbox.spawn(on(&sandbox, "node-b", 20, true, &take_over));
    sandbox.wait_for("the first one to notice", SOON, || {
        assert!(!second.has_ended(), "{}", second.stderr());
        first.stderr().contains("node-b")
    });
    assert!(!first.has_ended(), "its program runs on: {}", first.stderr());
    let of_the_first = told(&first);
    sandbox.wait_for("the second one to say so", SOON, || {
        second.stderr().contains("taking images over from host node-a")
    });
    sandbox.wait_for("checkpoints of the second", SOON, || {
        assert!(!second.has_ended(), "{}", second.stderr());
        told(&second).len() > 2
    });
    assert_eq!(told(&first), of_the_first, "{}", first.stderr());
    let of_the_second = told(&second);
    assert!(of_the_second.iter().all(|id| !of_the_first.contains(id)), "{of_the_first:?} {of_the_second:?}");
    assert!(generations(&sandbox).iter().all(|one| one.complete));
    sandbox.run(verb("verify", ["images"])).success();

    // Nobody says that the second has ended: a third does not guess either.
    for node in [first, second] {
        node.kill(Signal::SIGKILL);
        node.wait(SOON).expect_code(137);
    }
    sandbox.wait_for("everybody's end", SOON, || sandbox.ps().is_empty());
    let left = generations(&sandbox);
    let refused =
        sandbox.run(on(&sandbox, "node-c", 20, false, &restart(&[]))).expect_code(125).stderr_text();
    assert!(refused.contains("node-b") && refused.contains("--take-over"), "{refused}");
    assert_eq!(generations(&sandbox), left);
}

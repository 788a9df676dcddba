//! Memory that cannot be saved: refused by name, and the program goes on.

use super::{Case, SOON, signal};
use ckpt_tests::scenario::verb;
use ckpt_tests::{Job, Sandbox, skip, victim_cmd};
use nix::sys::signal::Signal;

/// The checkpoint is refused in words that name `what`; no file is left, and the program lives on.
fn assert_refused(sandbox: &Sandbox, mut job: Job, what: &str) {
    let program = job.program();
    let refused = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125);
    let said = refused.stderr_text();
    assert!(said.contains(what) && said.contains(&program.to_string()), "{said}");
    assert!(job.checkpoints().is_empty(), "a refused checkpoint left a file");
    signal(sandbox, program);
    job.running().wait_for_output("done 1\n", SOON);
    sandbox.kill(program, Signal::SIGTERM as i32).unwrap();
    job.wait(SOON).expect_code(143);
}

#[test]
fn registered_buffers_of_an_io_uring() {
    let sandbox = Sandbox::new("dirty-ring");
    let mut job = Case::of(&["ring"]).launch(&sandbox);
    let printed = String::from_utf8_lossy(&job.running().stdout()).into_owned();
    if printed.contains("io_uring made") {
        assert_refused(&sandbox, job, "io_uring");
    } else {
        skip::skip("registered_buffers_of_an_io_uring", &printed);
        job.kill_all();
    }
}

#[test]
fn asynchronous_io() {
    let sandbox = Sandbox::new("dirty-aio");
    let job = Case::of(&["aio"]).launch(&sandbox);
    assert_refused(&sandbox, job, "[aio]");
}

/// Of private and of shared memory, for writes, for missing pages, and for pages that are there.
const WATCHED: &[&str] = &["watched", "awaited", "shared-watched", "shared-awaited", "shared-minor"];

#[test]
fn the_programs_own_userfaultfd() {
    for how in WATCHED {
        let sandbox = Sandbox::new("dirty-watched");
        let job = Case::of(&[how]).launch(&sandbox);
        assert_refused(&sandbox, job, "userfaultfd");
    }
}

#[test]
fn memory_watched_through_a_userfaultfd_that_another_process_holds() {
    WATCHED.iter().for_each(|how| held_by_another_process(how));
}

fn held_by_another_process(how: &str) {
    let sandbox = Sandbox::new("dirty-held");
    let job = Case { steps: 2, ..Case::of(&[how]) }.launch(&sandbox);
    let program = job.program();
    let printed = String::from_utf8_lossy(&job.running().stdout()).into_owned();
    let fd =
        printed.lines().find_map(|line| line.strip_prefix("userfaultfd ")).expect("its number").to_owned();
    let holder = sandbox.spawn(victim_cmd("dirty").args(["hold", &program.to_string(), &fd]));
    holder.wait_for_output("held\n", SOON);
    // The step closes the program's own descriptor: only the mapping tells.
    signal(&sandbox, program);
    job.running().wait_for_output("done 1\n", SOON);
    for _ in 0..2 {
        let refused = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125);
        assert!(refused.stderr_text().contains("userfaultfd"), "{how}: {}", refused.stderr_text());
    }
    holder.kill(Signal::SIGKILL);
    holder.wait(SOON);
    // Nobody watches any more.
    assert_eq!(job.checkpoint().id, 1);
    let mut job = job;
    job.kill_all();
}

//! Between checkpoints the program is as if it had been started bare: nobody traces it, a debugger can attach.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::{Cmd, Job, Sandbox, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn running_counter<'b>(sandbox: &'b Sandbox, options: &[&str]) -> (Job<'b>, i32) {
    let job = Job::launch(sandbox, options, &victim_cmd("count_static").args(["f", "100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    let program = job.program();
    (job, program)
}

fn field(sandbox: &Sandbox, pid: i32, name: &str) -> String {
    let status = std::fs::read_to_string(sandbox.root().join(format!("proc/{pid}/status"))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
}

fn end(mut job: Job, sandbox: &Sandbox, program: i32) {
    sandbox.kill(program, Signal::SIGTERM as i32).unwrap();
    job.wait(SOON).expect_code(143);
}

#[test]
fn nobody_traces_and_no_descriptor_is_added() {
    let sandbox = Sandbox::new("untraced");
    let (job, program) = running_counter(&sandbox, &[]);
    let descriptors = |what: &str| {
        let list = format!("for fd in /proc/{program}/fd/*; do echo ${{fd##*/}} $(readlink $fd); done");
        let listed = sandbox.run(Cmd::sh(&list)).success().stdout_text();
        assert!(!listed.is_empty(), "{what}");
        listed
    };
    let before = descriptors("before");
    for _ in 0..3 {
        job.checkpoint();
        assert_eq!(field(&sandbox, program, "TracerPid"), "0");
        assert_eq!(descriptors("after"), before);
    }
    end(job, &sandbox, program);
}

#[test]
fn a_debugger_can_attach_and_the_next_checkpoint_says_so() {
    let sandbox = Sandbox::new("debugger");
    let (job, program) = running_counter(&sandbox, &[]);
    job.checkpoint();
    let pid = program.to_string();
    let look = ["--batch", "--nx", "-p", pid.as_str(), "-ex", "info registers rip"];
    let looked = sandbox.run(Cmd::new("gdb").args(look)).success();
    assert!(looked.stdout_text().contains("rip"), "{}", looked.stderr_text());
    sandbox.run("mkfifo hold").success();
    let hold = ["--batch", "--nx", "-p", pid.as_str(), "-ex", "shell cat hold"];
    let debugger = sandbox.spawn(Cmd::new("gdb").args(hold));
    sandbox.wait_for("gdb to have attached", SOON, || field(&sandbox, program, "TracerPid") != "0");
    let refused = sandbox.run(ckpt_tests::scenario::verb("checkpoint", [job.dir()])).expect_code(125);
    assert!(refused.stderr_text().contains("traced by process"), "{}", refused.stderr_text());
    sandbox.run("echo > hold").success();
    debugger.wait(SOON).success();
    let after = job.checkpoint();
    assert!(after.complete && after.id == 2, "{after:?}");
    end(job, &sandbox, program);
}
